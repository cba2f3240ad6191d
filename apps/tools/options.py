"""Options of `voxelwave doctor`, `info` and `completion`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..options import Options, must_exist


@dataclass(frozen=True, kw_only=True)
class Doctor(Options):
    """Show versions, processor, compiler, the path of the kernels, GPU, memory and disk, and what each field needs.

    Nothing is changed. The exit code is 1 if a required package is missing.

    Args:
        output: the folder whose disk is examined; by default the current one.
    """

    output: Path = Path(".")


@dataclass(frozen=True, kw_only=True)
class Info(Options):
    """Describe FILE: its kind, size, position in space or channels, and the commands that take it.

    FILE is an image (NIfTI, .mgz, .nrrd, a DICOM file or the folder of a series, PNG, TIFF), an EEG recording, a
    transform, points or a surface, a weight file, scenes with scanpaths, fixations of an eye tracker, the result of a
    registration, or a folder of such files.

    Args:
        file: the file or folder.
    """

    archives = ("file",)

    file: Path = field(kw_only=False)

    def check(self) -> None:
        super().check()
        must_exist(self.file, "file or folder")


@dataclass(frozen=True, kw_only=True)
class Completion(Options):
    """Print the script with which a shell completes fields, verbs, options and their choices.

    Add it to the start-up file of the shell: `source <(voxelwave completion bash)` to ~/.bashrc, the same with zsh to
    ~/.zshrc, `voxelwave completion fish | source` to ~/.config/fish/config.fish.

    Args:
        shell: the shell.
    """

    shell: Literal["bash", "zsh", "fish"] = field(kw_only=False)
