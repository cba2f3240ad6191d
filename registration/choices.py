"""The possible values of options: methods, similarities, contrasts, tasks and splits. Imports no heavy library."""

from typing import Literal, get_args

Method = Literal["nestedmorph", "tissues", "field", "syn"]
Similarity = Literal["auto", "ncc", "mi", "mind"]
Effort = Literal["fast", "standard", "accurate"]
Levels = Literal["coarse", "fine", "all"]
Transform = Literal["auto", "rigid", "affine", "deformable"]
PhaseAxis = Literal["i", "i-", "j", "j-", "k", "k-"]
TrainingSimilarity = Literal["ncc", "mi", "mind"]
FlowHead = Literal["published", "quarter"]
Norm = Literal["batch", "group"]
AffineKind = Literal["affine", "rigid", "none"]
Contrast = Literal["image", "b0", "fa", "dwi"]
Task = Literal["t1-dwi", "atlas-to-patient", "patient-to-patient"]
Split = Literal["train", "val", "test"]
LabelMethod = Literal[
    "affine", "fast", "standard", "accurate", "diffeomorphic", "tissues", "syn", "greedy", "convexadam"
]
DiffusionMethod = Literal["identity", "rigid", "affine", "auto", "deformable", "syn", "greedy"]

METHODS: tuple[Method, ...] = get_args(Method)
CONTRASTS: tuple[Contrast, ...] = get_args(Contrast)
SPLITS: tuple[Split, ...] = get_args(Split)
LABEL_METHODS: tuple[LabelMethod, ...] = get_args(LabelMethod)
CONTRAST_METHODS: tuple[LabelMethod, ...] = ("affine", "standard", "tissues", "syn", "convexadam")
DIFFUSION_METHODS: tuple[DiffusionMethod, ...] = get_args(DiffusionMethod)
FLOW_HEADS: tuple[FlowHead, ...] = get_args(FlowHead)
NORMS: tuple[Norm, ...] = get_args(Norm)


def contrast_named(name: str) -> Contrast:
    """Return the contrast with this name.

    Raises:
        ValueError: there is no such contrast.
    """
    for contrast in CONTRASTS:
        if contrast == name:
            return contrast
    raise ValueError(f"contrast must be one of {', '.join(CONTRASTS)}, got {name!r}")
