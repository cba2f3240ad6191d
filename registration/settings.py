"""Settings of a registration, shared by `register` and the commands. Loads no heavy library."""

from dataclasses import dataclass

from .choices import Effort, Method, Similarity


@dataclass(frozen=True, kw_only=True)
class RegistrationSettings:
    """The settings on which the result of a registration depends.

    Args:
        method: field (no network), nestedmorph (needs a trained network) or syn (ANTs). Default: nestedmorph with a
            network, field without.
        similarity: similarity measure of the refinement: ncc (local correlation, one contrast), mi (mutual
            information) or mind (self-similarity); auto takes ncc or mi, depending on how similar the contrasts are.
        effort: finest resolution of the refinement for images of one contrast: fast ends at 2 mm for a human brain,
            standard at 1 mm, which aligns the cortex better.
        diffeomorphic: compose small smooth steps only, even between different contrasts, so that the map never folds.
        seed: seed for the random sampling of the affine registration.
    """

    method: Method | None = None
    similarity: Similarity = "auto"
    effort: Effort = "standard"
    diffeomorphic: bool = False
    seed: int = 0
