"""Names that may be shown: BIDS names and imaging terms; any other name is replaced by a short hash."""

import hashlib
import os
import re
from pathlib import Path

BIDS_NAME = re.compile(r"sub-[0-9A-Za-z]+(_[a-z]+-[0-9A-Za-z+]+)*_[0-9A-Za-z]+")
_BIDS_FOLDER = re.compile(r"(sub|ses)-[0-9A-Za-z]+|anat|func|dwi|fmap|perf|pet|eeg|meg|derivatives")
MODALITY_OF_SUFFIX = {"eeg": "EEG", "meg": "MEG", "pet": "PT", "ct": "CT"}  # of a BIDS name; the others are MR
_IMAGING = """
    acq adc adni anat asl atlas ax axial bold brain brainmask bravo case cine contrast cor coronal ct dcm dicom
    diffusion dir dixon dti dwi echo ed eeg enhanced ep epi es export fa fast fat fatsat field fieldmap file fixed fl
    flair fmap fmri frame fs fse func gad gd gre haste head im ima image images img in ir iso kernel left loc localizer
    ls mag map mask mean mgz mni moving mp mpr mprage mr mra mri ms native nifti no norm out pat patient pd perf pet
    phantom phase pt raw rawdata rec right rt run sag sagittal scan scans scout se ser series ses session slab slice
    slices smooth space spgr spine st stack std stir study sub subject swi tag task te test thick thin ti tirm tof tr
    tra trace tse vibe vol volume wip
"""
_WORDS = frozenset(_IMAGING.split())
_IMAGE_FILES = """
    .nii .mgz .mgh .dcm .ima .dicom .png .tif .tiff .bmp .jpg .jpeg .webp .pgm .ppm .edf .bdf .gdf .vhdr .set .fif .mat
    .txt .csv .tsv .json
"""
_ENDINGS = frozenset(["", *_IMAGE_FILES.split()])


def bids_entities(name: str) -> dict[str, str]:
    """The entities of a BIDS name; its last part is the entity "suffix".

    Example:
        >>> bids_entities("sub-01_acq-highres_T1w")
        {'sub': '01', 'acq': 'highres', 'suffix': 'T1w'}
    """
    *pairs, suffix = name.split("_")
    entities = dict(part.split("-", 1) for part in pairs if "-" in part)
    return {**entities, "suffix": suffix}


def is_harmless(name: str) -> bool:
    """Whether a name reveals nothing about a person: a BIDS name, or only imaging terms, single letters and digits.

    Example:
        >>> [is_harmless(name) for name in ("sub-01_T1w", "scan_12", "Doe_John", "19570204")]
        [True, True, False, False]
    """
    if BIDS_NAME.fullmatch(name) or _BIDS_FOLDER.fullmatch(name):
        return True
    words = re.findall(r"[A-Za-z]+|[^\x20-\x7e]", name)
    digits = sum(character.isdigit() for character in name)
    return digits <= 5 and all((len(w) == 1 and w.isascii()) or w.lower() in _WORDS for w in words)


def shown_name(name: str, *, keep_identifiers: bool = False) -> str:
    """A part of a path in the form in which it may be shown: unchanged if harmless, otherwise as a short hash.

    Example:
        >>> shown_name("Doe_John.nii.gz")
        '~93e05aee.nii.gz'
    """
    if keep_identifiers:
        return printable(name)
    stem = name_stem(name)
    ending = name[len(stem) :]
    if ending.lower().removesuffix(".gz") not in _ENDINGS:
        stem, ending = name, ""
    return name if is_harmless(stem) else f"~{short_hash(name, length=8)}{ending}"


def shown_path(path: Path, root: Path, *, keep_identifiers: bool = False) -> str:
    """A path in the form in which it may be shown: relative to `root`, with each part converted by `shown_name`."""
    return "/".join(
        part if part == ".." else shown_name(part, keep_identifiers=keep_identifiers)
        for part in relative(path, root).split("/")
    )


def relative(path: Path, root: Path) -> str:
    """The path relative to `root`, with "/" between its parts."""
    return os.path.relpath(path, root).replace(os.sep, "/")


def printable(text: str) -> str:
    """Text with escaped control characters, which a terminal shows on one line and every file can hold.

    Example:
        >>> printable("two" + chr(10) + "lines")
        'two\\\\x0alines'
    """
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text.encode("utf-8", "backslashreplace").decode()


def name_stem(name: str) -> str:
    """A file name without its suffix.

    Example:
        >>> name_stem("scan.nii.gz"), name_stem("1.2.840.dcm"), name_stem("IM0001")
        ('scan', '1.2.840', 'IM0001')
    """
    name = re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)
    return re.sub(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{0,5}$", "", name)


def short_hash(*words: str, length: int = 10) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).hexdigest()[:length]
