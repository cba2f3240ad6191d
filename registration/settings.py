"""Settings of a registration, shared by `register` and the commands. Loads no heavy library."""

from dataclasses import dataclass

from .choices import Effort, Method, PhaseAxis, Similarity, Transform


@dataclass(frozen=True, kw_only=True)
class RegistrationSettings:
    """The settings on which the result of a registration depends.

    Args:
        method: field (no network), nestedmorph (a trained network gives the starting point), tissues (a trained network
            brings brain scans of two contrasts into one) or syn (ANTs). Default: the method of the network, or field
            without one.
        transform: kind of map: rigid (rotation and translation), affine (scaling and shear as well) or deformable.
            auto takes rigid for two scans of one subject, which it recognises by BIDS names or DICOM headers, and
            corrects a diffusion scan along its phase-encoding axis; otherwise it takes deformable.
        pe_axis: the phase-encoding axis of the diffusion scan, by its voxel axes; by default from the .json beside the
            scan or from the DICOM headers.
        similarity: similarity measure of the refinement: ncc (local correlation, one contrast), mi (mutual
            information) or mind (self-similarity); auto takes ncc or mi, depending on how similar the contrasts are.
        effort: for images of one contrast: fast refines down to 2 mm for a human brain; standard refines in both
            directions, so that exchanging the scans inverts the map, and down to 1 mm if the scans are that fine, which
            aligns the cortex better; accurate refines down to 1 mm even if the scans are coarser, with twice as many
            iterations there.
        diffeomorphic: compose small smooth steps only, even between different contrasts, so that the map never folds.
        seed: seed for the random sampling of the affine registration.
    """

    method: Method | None = None
    transform: Transform = "auto"
    pe_axis: PhaseAxis | None = None
    similarity: Similarity = "auto"
    effort: Effort = "standard"
    diffeomorphic: bool = False
    seed: int = 0
