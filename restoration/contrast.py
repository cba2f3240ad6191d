"""The contrast of an MR image, as far as the name of a file or a DICOM header states it."""

import re
from collections.abc import Iterable

# Suffixes of the Brain Imaging Data Structure (BIDS) 1.10 for MR images, and two maps of diffusion
_SUFFIXES = frozenset(
    {
        "T1w", "T2w", "FLAIR", "PDw", "T2starw", "inplaneT1", "inplaneT2", "PDT2", "UNIT1", "angio", "swi", "dwi",
        "sbref", "bold", "cbv", "asl", "m0scan", "epi", "phasediff", "phase1", "phase2", "magnitude", "magnitude1",
        "magnitude2", "fieldmap", "T1map", "T2map", "T2starmap", "R1map", "R2map", "R2starmap", "PDmap", "MTRmap",
        "MTsat", "MTVmap", "MWFmap", "Chimap", "S0map", "M0map", "TB1map", "TB1EPI", "RB1map", "VFA", "IRT1",
        "MP2RAGE", "MESE", "MEGRE", "MPM", "MTS", "MTR", "phase", "ADC", "FA",
    }
)  # fmt: skip
_PHASE = frozenset({"P", "PHASE", "PHASE MAP", "VELOCITY"})
_DIFFUSION = frozenset({"ADC", "FA", "TRACEW", "DIFFUSION"})


def contrast_of_name(name: str) -> str | None:
    """The contrast in the name of a file: its BIDS suffix; None if it has none.

    Example:
        >>> contrast_of_name("sub-01_ses-2_T1w.nii.gz"), contrast_of_name("t1.nii")
        ('T1w', None)
    """
    if re.search(r"(^|_)part-phase_", name):
        return "phase"
    suffix = name.partition(".")[0].rpartition("_")[2]
    return suffix if suffix in _SUFFIXES else None


def contrast_of_types(image_types: Iterable[str]) -> str | None:
    """The contrast in the ImageType of a DICOM header, if it tells: "phase" or "dwi" (also for maps of diffusion).

    Example:
        >>> contrast_of_types(["ORIGINAL", "PRIMARY", "P"]), contrast_of_types(["DERIVED", "PRIMARY", "ADC"])
        ('phase', 'dwi')
    """
    found = {kind.upper() for kind in image_types}
    return "phase" if found & _PHASE else "dwi" if found & _DIFFUSION else None
