"""Options of `voxelwave eeg`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...eeg.training_options import TrainingOptions
from ...runs.catalogue import find_weights
from ...runs.exit import UsageError
from ..batch.options import FolderOptions
from ..options import (
    DeviceOptions,
    InputOptions,
    OnnxOptions,
    Options,
    OutputOptions,
    ResumeOptions,
    ThreadOptions,
    at_least,
    must_exist,
)

CHECKPOINT = "last.ckpt"


@dataclass(frozen=True, kw_only=True)
class StudyOptions(Options):
    """Options of commands that read a study.

    Args:
        study: subjects.tsv or its folder, a BIDS folder, or a folder with one sub-folder or .zip per class.
        positive: the class that is diagnosed. Default: the class that is not called control, healthy or normal.
        label_column: the column that holds the label. Default: label, or in a BIDS folder group, diagnosis or label.
        person_column: the column that names the person, if one person has several subjects; all of them are put on the
            same side of every split.
            Default: person, if there is such a column.
    """

    study: Path = field(kw_only=False)
    positive: str | None = None
    label_column: str | None = None
    person_column: str | None = None

    def check(self) -> None:
        super().check()
        must_exist(self.study, "study")


@dataclass(frozen=True, kw_only=True)
class GuardOptions(Options):
    """Options of the audit that precedes a training.

    Args:
        no_audit: skip the audit of the study and its split.
        allow_leakage: train even if the audit fails; the results mention it.
    """

    no_audit: bool = False
    allow_leakage: bool = False


@dataclass(frozen=True, kw_only=True)
class Train(TrainingOptions, StudyOptions, GuardOptions, ResumeOptions, DeviceOptions, ThreadOptions):
    """Train one network on the recordings of STUDY, for use with `diagnose` and `explain`.

    A share of the subjects of each class is kept for validation. These subjects decide when training stops, which epoch
    is kept, and the threshold; the figures measured on them are therefore optimistic. `voxelwave eeg nested-cv` gives
    unbiased figures. Recordings that are equal, or of one person, are on one side; if other recordings on the two sides
    share EEG, nothing is trained and the exit code is 4. OUTPUT receives model.safetensors, model.json, curve.csv (a
    row per epoch), last.ckpt and record.json.

    Args:
        output: the folder to write to.
        windows: how recordings are cut: seconds, overlap, sfreq, band, reference, channels, scaling and so on.
        cache: a folder in which the cut windows are kept, for a faster start the next time.
        mask_epochs: epochs of a pre-training without labels before the training, in which a growing share (10 to 60 %)
            of the time is hidden and each partly hidden signal must be recognised among others; for adhdeepnet and
            long_recording.
    """

    writes = ("model.safetensors", "model.json")

    output: Path
    windows: dict[str, Any] | None = None
    cache: Path | None = None
    mask_epochs: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, epochs=self.epochs, patience=self.patience, reduce_patience=self.reduce_patience)
        at_least(2, batch=self.batch)
        at_least(0, mask_epochs=self.mask_epochs)
        if self.mask_epochs and self.network not in ("adhdeepnet", "long_recording"):
            raise UsageError(f"--mask-epochs needs --network adhdeepnet or long_recording, got {self.network}")
        if not 0 < self.validation_share < 1:
            raise UsageError(f"--validation-share must be between 0 and 1, got {self.validation_share:g}")


@dataclass(frozen=True, kw_only=True)
class Diagnose(InputOptions, FolderOptions):
    """Estimate the probability of the diagnosed class for one recording, or for each recording in a folder.

    Recordings are cut and scaled in the same way as those that the network was trained on. OUTPUT receives subjects.csv
    (a row per recording, with the mean probability of its windows, and "uncertain" if that is within --abstain of the
    threshold), windows.csv and diagnosis.json. For a folder, the last two are also written to a folder per recording,
    along with manifest.jsonl and index.html. There, a recording that is damaged or does not fit the weights (channels,
    rate, length) is recorded with its reason and the others continue (exit code 3); the same command again does only
    what is missing or changed. This is research software, not a medical device.

    Args:
        recording: a recording, or a folder of recordings.
        output: the folder to write to.
        weights: model.safetensors with model.json beside it, their folder, or a name that `voxelwave weights` lists,
            such as rhythm-demo.
        threshold: the probability from which a recording counts as positive. Default: the threshold of the weights.
        abstain: half the width of the band around the threshold in which no decision is made.
        stream: read recordings piece by piece, so that memory does not grow with their length; for weights of
            long_recording whose mixer keeps a state of constant size (such as recurrent), at their sampling rate.
        table: subjects.tsv, participants.tsv or another table with a row per recording or per person; OUTPUT then also
            receives people.csv.
        label_column: the column of that table with the label. Default: label, group or diagnosis.
        person_column: the column with the person, if one person has several recordings. Default: person, else subject.
    """

    first_word = "recording"
    archives = ("input",)
    writes = ("subjects.csv", "windows.csv", "people.csv", "diagnosis.json")

    recording: Path | None = field(default=None, kw_only=False)
    output: Path
    weights: Path
    threshold: float | None = None
    abstain: float = 0.1
    stream: bool = False
    table: Path | None = None
    label_column: str | None = None
    person_column: str | None = None

    @property
    def weights_file(self) -> Path:
        """The file or folder of the weights."""
        return find_weights(self.weights, "eeg")

    def check(self) -> None:
        super().check()
        for name, value in (("threshold", self.threshold), ("abstain", self.abstain)):
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"--{name} must be between 0 and 1, got {value:g}")
        must_exist(self.input, "recording or folder")
        must_exist(self.table, "table")
        if self.table is None and (self.label_column or self.person_column):
            raise UsageError("--label-column and --person-column need --table")
        must_exist(self.weights_file, "file of weights")

    def earlier(self) -> list[Path]:
        return [] if self.input.is_dir() and self.continues else super().earlier()


@dataclass(frozen=True, kw_only=True)
class Audit(StudyOptions, OutputOptions):
    """Check a study, and a split of it, for leakage and for confounds that predict the label by themselves.

    The audit looks for the same EEG under two names, subjects or near-duplicate windows on both sides of a fold, inner
    folds that reach outside the outer training part, folds that lack a class, and scaling or selection outside the
    fold. It measures how well the length of a recording, its amplitude, its file, site, age or sex predicts the label.
    The exit code is 4 if a check fails. Passing the audit does not prove that there is no leakage.

    Args:
        study: subjects.tsv (columns subject, file, label; others, such as site, age and sex, are tested as confounds),
            its folder, a BIDS folder, or a folder with one sub-folder or .zip of recordings per class.
        splits: the folder of a nested run or its plan.json; a .csv or .tsv with columns subject, fold and optionally
            set (train, validation, test), repeat, start (first sample of a window); or a .json with folds.
        output: a folder for audit.json.
        seconds: length of the windows. Default: that of the nested run, else 4.
        overlap: fraction of a window that the next window repeats. Default: that of the nested run, else 0.
        sfreq: sampling rate of the windows, Hz. Default: that of the nested run, else 128.
        channels: names of the channels to use, if the recordings have different ones.
        mat_order: order of the columns of .mat files: ced or text.
        permutations: number of permutations in the test of each confound.
        seed: seed of the permutations and bootstraps.
    """

    writes = ("audit.json",)

    splits: Path | None = None
    output: Path | None = None
    seconds: float | None = None
    overlap: float | None = None
    sfreq: float | None = None
    channels: list[str] | None = None
    mat_order: str | None = None
    permutations: int = 999
    seed: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, permutations=self.permutations)
        must_exist(self.splits, "split file")

    @property
    def given_windows(self) -> dict[str, Any]:
        """The window options that were given on the command line."""
        names = ("seconds", "overlap", "sfreq", "channels", "mat_order")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class Export(OnnxOptions):
    """Write a trained network as an ONNX file, which other programs run without PyTorch.

    The number of windows is dynamic; for a network that reads whole recordings, so is their length in seconds. If
    onnxruntime is installed, the file is compared with PyTorch at two sizes, and is not written if they differ by more
    than rounding. Its metadata hold the version, the card and the preprocessing.

    Args:
        weights: model.safetensors with model.json beside it, their folder, or a name that `voxelwave weights` lists.
    """

    weights: Path

    def check(self) -> None:
        super().check()
        must_exist(find_weights(self.weights, "eeg"), "weights")


@dataclass(frozen=True, kw_only=True)
class Benchmark(OutputOptions):
    """Measure how many random windows per second a training step processes on the CPU.

    A step is a forward pass, a backward pass and an optimizer step on windows of 19 channels and 512 samples. The
    networks are ADHDeepNet with our order of its layers, the same network layer by layer as published, EEGNet
    and ShallowConvNet; ADHDeepNet at its defaults, at the optimum published for fold 1, and with the longest filters of
    the search. The networks take turns, so that other load on the machine slows all of them alike. Medians,
    ranges and ratios are printed, by wall clock and by CPU time.

    Args:
        output: a folder for benchmark-training.json.
        batch: windows per step.
        repeats: timed steps of each network.
        threads: CPU threads.
        seed: seed of the weights and windows.
    """

    writes = ("benchmark-training.json",)

    output: Path | None = None
    batch: int = 64
    repeats: int = 7
    threads: int = 2
    seed: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, batch=self.batch, repeats=self.repeats, threads=self.threads)
