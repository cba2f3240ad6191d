"""Alignment of two brain scans: NestedMorph, dense-field refinement, losses, metrics, training."""

from typing import TYPE_CHECKING

from ..runs.public import public_names

if TYPE_CHECKING:
    from .nestedmorph import NestedMorph as NestedMorph
    from .nestedmorph_files import read_trained_network as read_trained_network
    from .register import register as register
    from .result import Registration as Registration
    from .settings import RegistrationSettings as RegistrationSettings

__all__ = public_names(
    __name__,
    {
        "NestedMorph": "nestedmorph",
        "Registration": "result",
        "RegistrationSettings": "settings",
        "read_trained_network": "nestedmorph_files",
        "register": "register",
    },
)
