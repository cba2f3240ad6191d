"""Options of `voxelwave restoration`."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ...restoration.settings import (
    EvaluationSettings,
    Region,
    RestoreSettings,
    SizeSettings,
    TileSettings,
    TrainingSettings,
)
from ...restoration.suffixes import file_stem
from ...runs.catalogue import find_weights
from ...runs.exit import UsageError
from ..batch.options import FolderOptions
from ..options import (
    DeviceOptions,
    InputOptions,
    OutputOptions,
    ResumeOptions,
    ThreadOptions,
    WorkerOptions,
    at_least,
    earlier_measurements,
    existing,
    must_exist,
    must_have_onnx,
)

Part = Literal["speed", "slice", "memory", "set12", "ct", "mr"]  # of the benchmark


def record_beside(output: Path) -> Path:
    """The record of a single restoration, beside its result; the folder of a series holds DICOM files only."""
    return output.with_name(f"{file_stem(output)}.restoration.json")


def _weights_must_exist(weights: Path | None) -> None:
    if weights is not None:
        must_exist(find_weights(weights, "restoration"), "file of weights")


def _check_tiles(settings: TileSettings) -> None:
    at_least(1, tile=settings.tile)
    if not 0 <= settings.overlap <= 0.5:
        raise UsageError(f"--overlap must be from 0 to 0.5, got {settings.overlap}")


@dataclass(frozen=True, kw_only=True)
class Restore(RestoreSettings, DeviceOptions, InputOptions, FolderOptions):
    """Restore an image, a volume or a DICOM series, or all images of a folder.

    The result has the data type, intensity scale and position of its input; the result of a DICOM series is a derived
    series. Weights for another intensity range or number of channels are refused (exit code 4). For a single input, a
    report on the difference between result and input is printed, and written beside the result. For a folder, OUTPUT
    receives a folder per image or series, manifest.jsonl and index.html. A case that fails is recorded with its reason
    and the others continue (exit code 3); the same command again does only what is missing or changed.

    Args:
        image: a PNG, TIFF, NIfTI or .mgz file, a folder with one DICOM series, or a folder with any number of these,
            nested in any way.
        output: the file to write; for a DICOM series a folder or a .nii.gz file; for many inputs a folder.
        weights: the name of weights that come with the package, a .safetensors file of voxelwave, or published weights
            (.pth) with --variant and --stripe-width.
        task: refuse weights for another task.
        modality: only DICOM series of these modalities, such as MR or MR,CT (folders only).
        series: only DICOM series whose description matches these patterns (folders only).
    """

    output_is = "either"
    writes = ("*.dcm",)  # those of a DICOM series
    first_word = "image"
    archives = ("input",)

    image: Path | None = field(default=None, kw_only=False)
    output: Path
    weights: Path = Path("denoise-grey")
    task: Literal["denoise", "super-resolution", "deblur", "dehaze"] | None = None
    modality: str | None = None
    series: str | None = None

    @property
    def for_folder(self) -> bool:
        """Whether an option is given that only applies to a folder."""
        return bool(self.folder_only) or self.modality is not None or self.series is not None

    def check(self) -> None:
        super().check()
        _check_tiles(self)
        if self.max_bias is not None and self.max_bias < 0:
            raise UsageError(f"--max-bias must be at least 0, got {self.max_bias}")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise UsageError(f"--sigma must be above 0, in the unit of the image, got {self.sigma}")
        must_exist(self.input, "file or folder")
        if self.for_folder and not self.input.is_dir():
            raise UsageError(f"--dry-run, --include and other options of folders need a folder, got {self.input}")
        _weights_must_exist(self.weights)

    def earlier(self) -> list[Path]:
        if self.input.is_dir() and self.continues:
            return []
        record = record_beside(self.output)
        return [*super().earlier(), *existing(record, record.with_suffix(".html"))]


@dataclass(frozen=True, kw_only=True)
class Train(TrainingSettings, ResumeOptions, DeviceOptions, ThreadOptions):
    """Train a network on the images of TRAIN_IMAGES, and validate it on those of VALIDATION_IMAGES.

    Patches are degraded when they are drawn. To train on real pairs, give the clean images as TRAIN_IMAGES and their
    degraded partners as --train-degraded, in the same order of names. Patches and degradations depend on the seed and
    the step only, so a training continued with --resume gets the same ones as an uninterrupted training.

    Args:
        train_images: a folder of PNG, TIFF or NIfTI files or DICOM series, a .zip or .tar file of them, or one image.
        validation_images: images of the same kind that show other people or scenes.
        output: the folder to write to: last.ckpt, weights.safetensors (averaged), metrics.csv, record.json.
    """

    writes = ("weights.safetensors",)
    archives = ("train_images", "validation_images", "train_degraded", "validation_degraded")

    train_images: Path = field(kw_only=False)
    validation_images: Path = field(kw_only=False)
    output: Path

    def check(self) -> None:
        super().check()
        if (self.train_degraded is None) != (self.validation_degraded is None):
            raise UsageError("--train-degraded and --validation-degraded must be given together, got one of them")
        for path in (self.train_images, self.validation_images, self.train_degraded, self.validation_degraded):
            must_exist(path, "file or folder")


@dataclass(frozen=True, kw_only=True)
class Evaluate(EvaluationSettings, TileSettings, SizeSettings, DeviceOptions, ThreadOptions, OutputOptions):
    """Degrade the images of CLEAN (or take their degraded partners), restore them, and measure PSNR and SSIM.

    The degraded input, the network and the classical methods are measured in the same run, per image and on average.
    Results and references are clipped to the range, and results are rounded if the images hold whole numbers. Classical
    denoisers get the true noise level if noise was added, otherwise an estimate from the image; the network gets
    neither. The bias that Rician noise of a known level adds to magnitudes is removed from the classical results; the
    network is then measured blind and as `restore --sigma` uses it (network-sigma).

    Args:
        clean: a folder of images, volumes or DICOM series, or a single one of these.
        weights: a file of weights, or the name of weights that come with the package (denoise-grey); without them only
            the classical methods are measured.
        methods: classical methods to compare with, a list of nlm, wavelet, tv and bm3d; by default all that are
            installed. Super-resolution is compared with bicubic interpolation instead.
        y_channel: measure colour images on the Y channel (BT.601, 16 to 235) only.
        border: pixels left out of the measurement at each side.
        region: measure all pixels, or only those of the head, which is found in the clean image.
        variant: the name of the published configuration, for published weights.
        stripe_width: the width of the stripes in the network's scan order, for published weights.
        output: the .tsv file for the table; a .json record with the options and versions is written beside it.
    """

    output_is = "file"
    archives = ("clean", "degraded")

    clean: Path = field(kw_only=False)
    weights: Path | None = None
    methods: list[str] | None = None
    y_channel: bool = False
    border: int = 0
    region: Region = "all"
    variant: str | None = None
    stripe_width: int | None = None
    output: Path | None = None

    def check(self) -> None:
        super().check()
        _check_tiles(self)
        at_least(1, scale=self.scale, slices_per_volume=self.slices_per_volume)
        if self.output is not None and self.output.suffix != ".tsv":
            raise UsageError(f"--output must end in .tsv, got {self.output}; a .json record is written beside it")
        if self.scale is not None or self.weights is None:  # else the scale of the network decides
            try:
                self.check_degradation(self.scale or 1)
            except ValueError as error:
                raise UsageError(str(error)) from None
        must_exist(self.clean, "file or folder")
        must_exist(self.degraded, "file or folder")
        _weights_must_exist(self.weights)

    def earlier(self) -> list[Path]:
        return [*super().earlier(), *existing(None if self.output is None else self.output.with_suffix(".json"))]


@dataclass(frozen=True, kw_only=True)
class CrossValidate(EvaluationSettings, TileSettings, WorkerOptions):
    """Compare a network and classical methods on held-out images of CLEAN, with settings chosen on the other images.

    Images are degraded (or taken with their degraded partners) as in `evaluate`. Folds keep the images of a person
    together. For each fold, the strength of each classical method, and the size of the network if its weights hold
    several, are chosen by the mean PSNR on the other folds; the held-out images are measured under these settings. No
    network is trained. OUTPUT receives report.html, results.json, units.csv, plan.json and cells/ with every single
    measurement; after a kill, the same command continues the run and gives the same figures.

    Args:
        clean: a folder of images, volumes or DICOM series.
        output: the folder to write to.
        weights: a file of weights, or the name of weights that come with the package; without them only the classical
            methods are compared.
        methods: classical methods, a list of nlm, wavelet, tv and bm3d; by default all that are installed. For
            super-resolution, bicubic interpolation takes their place.
        strengths: factors to try on the noise level that a classical method is given.
        people: a table (.tsv, .csv) with the columns file and person, if several images show one person; by default
            each file is a person. Equal images are kept together.
        folds: number of folds.
        title: title of the report.
    """

    clean: Path = field(kw_only=False)
    output: Path
    weights: Path | None = None
    methods: list[str] | None = None
    strengths: list[float] = field(default_factory=lambda: [0.5, 0.75, 1.0, 1.25, 1.5])
    people: Path | None = None
    folds: int = 5
    title: str | None = None

    def check(self) -> None:
        super().check()
        _check_tiles(self)
        at_least(2, folds=self.folds)
        at_least(1, scale=self.scale, slices_per_volume=self.slices_per_volume)
        if not self.strengths or min(self.strengths) <= 0:
            raise UsageError(f"--strengths must be factors above 0, got {self.strengths}")
        must_exist(self.clean, "file or folder")
        must_exist(self.degraded, "file or folder")
        must_exist(self.people, "table of people")
        _weights_must_exist(self.weights)
        if self.scale is not None or self.weights is None:
            try:
                self.check_degradation(self.scale or 1)
            except ValueError as error:
                raise UsageError(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class Export(ThreadOptions, OutputOptions):
    """Write the averaged weights of a training checkpoint as a .safetensors file, or a network as an .onnx file.

    The checkpoint is only read, so the training may still be running. The .safetensors file contains the network's
    arguments, its task and intensity range, and the number of steps. The .onnx file is for other programs, which run it
    without PyTorch. The number of images, their height and their width are dynamic (for the U-shaped network, multiples
    of 8). If onnxruntime is installed, the file is compared with PyTorch at two sizes, and is not written if they
    differ by more than rounding. Its metadata hold the version, the card and the preprocessing.

    Args:
        checkpoint: last.ckpt in the output folder of train, for a .safetensors file.
        output: the .safetensors or .onnx file to write.
        weights: for an .onnx file: a file of weights, or the name of weights that come with the package.
        size: for an .onnx file: the network to take from weights that contain several.
        variant: the name of the published configuration, for published weights.
        stripe_width: the width of the stripes in the network's scan order, for published weights.
        notes: further entries to store in the .safetensors file, as name: text, such as data, licence, command, seed.
    """

    output_is = "file"

    checkpoint: Path | None = field(default=None, kw_only=False)
    output: Path
    weights: Path | None = None
    size: Literal["small", "medium", "full"] = "full"
    variant: str | None = None
    stripe_width: int | None = None
    notes: dict[str, str] | None = None

    def check(self) -> None:
        super().check()
        must_exist(self.checkpoint, "checkpoint")
        if self.output.suffix not in (".safetensors", ".onnx"):
            raise UsageError(f"--output must end in .safetensors or .onnx, got {self.output}")
        onnx = self.output.suffix == ".onnx"
        if (self.checkpoint is None) != onnx or (self.weights is None) == onnx:
            raise UsageError(
                "a .safetensors file is written from CHECKPOINT, and an .onnx file from --weights: give one"
            )
        of_weights = self.size != "full" or self.variant is not None or self.stripe_width is not None
        if not onnx and of_weights:
            raise UsageError("--size, --variant and --stripe-width are for an .onnx file; leave them out")
        if onnx and self.notes is not None:
            raise UsageError("--notes is for a .safetensors file; leave it out")
        if onnx:
            _weights_must_exist(self.weights)
            must_have_onnx()


@dataclass(frozen=True, kw_only=True)
class Extract(OutputOptions):
    """Write one size of weights that contain several as a .safetensors file of its own.

    The file holds the parameters of that size only, so it is smaller, and it gives the same results as --size with the
    original weights.

    Args:
        weights: a .safetensors file of voxelwave, or the name of weights that come with the package.
        size: the size to extract.
        output: the .safetensors file to write.
    """

    output_is = "file"

    weights: Path = field(kw_only=False)
    size: Literal["small", "medium"]
    output: Path

    def check(self) -> None:
        super().check()
        _weights_must_exist(self.weights)
        if self.output.suffix != ".safetensors":
            raise UsageError(f"--output must end in .safetensors, got {self.output}")


@dataclass(frozen=True, kw_only=True)
class Benchmark(OutputOptions):
    """Measure time, memory and quality of restoration on the CPU.

    The parts are: "speed", MaIR-S x2 on a 64 x 64 input with one thread, compared with the same network with a
    step-by-step scan in plain PyTorch, and the share of time of each part of the network; "slice", denoising a 512 x
    512 slice; "memory", the peak memory for a small and a large image in tiles of the same size. The following parts
    need --data: "set12", Gaussian noise of sigma 25; "ct", a sharp, noisy CT reconstruction against a smooth one of the
    same scan; "mr", Rician noise on T1, T2 and FLAIR slices. These parts compare the denoiser with non-local means,
    wavelets, total variation, and BM3D if it is installed. OUTPUT receives benchmark-PART.json.

    Args:
        output: the folder to write to.
        data: the folder of real images, with restoration/ and mri_ms_multimodal/ as the tests use it.
        part: the part to measure.
        weights: the denoiser, a file or the name of weights that come with the package.
        seed: seed of the network's random weights and of the noise.
    """

    output: Path
    data: Path | None = None
    part: Literal["all"] | Part = "all"
    weights: Path = Path("denoise-grey")
    seed: int = 0

    def check(self) -> None:
        super().check()
        if self.part in ("set12", "ct", "mr") and self.data is None:
            raise UsageError(f"--part {self.part} needs --data, the folder of real images")
        must_exist(self.data, "folder")
        _weights_must_exist(self.weights)

    def earlier(self) -> list[Path]:
        return earlier_measurements(self.output, self.part, get_args(Part))


@dataclass(frozen=True, kw_only=True)
class Images(OutputOptions):
    """Gather images to train a denoiser on, in train/ and validation/ of a folder.

    Without --scans, these are the openly licensed images of installed packages, as grey PNG files: those of
    scikit-image (public domain or CC0), of scikit-learn (CC BY) and, if nilearn is installed, slices of the MNI152
    brain template. LICENCES.tsv in the same folder lists the licence and author of each image.

    With --scans, they are slices of your MR scans, cut to the head, at their own size, at two thirds and at half of it,
    and with --labels also synthetic slices, as NIfTI files.

    Args:
        output: the folder to write to.
        scans: a folder of MR scans of the head (NIfTI, MGH or NRRD), at any depth.
        labels: a folder of brain label maps with FreeSurfer numbers, each of which gives a stack of synthetic slices
            with random brightness and texture.
        validation: scans whose path contains one of these words, such as the names of people, are for validation.
        least_side: leave out stacks whose slices have a side of fewer pixels, such as the largest patch of the
            training.
        seed: seed of the synthetic slices and of the noise floors.
    """

    writes = ("train/*", "validation/*", "LICENCES.tsv")
    archives = ("scans", "labels")

    output: Path
    scans: Path | None = None
    labels: Path | None = None
    validation: list[str] | None = None
    least_side: int = 64
    seed: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, least_side=self.least_side)
        if self.scans is None and (self.labels is not None or self.validation):
            raise UsageError("--labels and --validation need --scans")
        must_exist(self.scans, "folder")
        must_exist(self.labels, "folder")
