"""Weight files of the two kinds of networks for a registration."""

import os

from .nestedmorph_files import TrainedNetwork, read_trained_network
from .tissues import TrainedTissueNet, read_tissue_net
from .weights_method import method_of_weights

RegistrationNetwork = TrainedNetwork | TrainedTissueNet


def read_network(path: str | os.PathLike[str]) -> RegistrationNetwork:
    """Read the weights of NestedMorph or of a network that finds tissues.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds neither.
    """
    return read_tissue_net(path) if method_of_weights(path) == "tissues" else read_trained_network(path)
