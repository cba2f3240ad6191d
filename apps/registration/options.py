"""Options of `voxelwave registration`."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

from ...registration.choices import (
    CONTRAST_METHODS,
    DIFFUSION_METHODS,
    LABEL_METHODS,
    DiffusionMethod,
    LabelMethod,
    Method,
    Split,
)
from ...registration.settings import RegistrationSettings
from ...registration.tissue_settings import TissueTrainingSettings
from ...registration.training_settings import CHECKPOINT, TrainingSettings
from ...registration.weights_method import method_of_weights
from ...runs.catalogue import find_weights
from ...runs.exit import UsageError
from ...runs.extras import must_have
from ...runs.files import is_hidden
from ..batch.options import FolderOptions
from ..options import (
    DeviceOptions,
    OnnxOptions,
    OutputOptions,
    ResumeOptions,
    WorkerOptions,
    at_least,
    earlier_measurements,
    existing,
    must_be_writable,
    must_exist,
    resume_or_overwrite,
)

FORWARD, INVERSE, AFFINE = "forward.nii.gz", "inverse.nii.gz", "affine.mat"  # the transforms of `register`
POINT_SUFFIXES = (".csv", ".tsv", ".gii")
TRANSFORM_SUFFIXES = (".mat", ".txt", ".tfm", ".lta", ".nii.gz", ".nii", ".h5")
PAIR_LISTS = ("pairs.tsv", "pairs.csv", "pairs.json")
Part = Literal["field", "labels", "contrasts", "diffusion", "training", "shift", "cost", "peer"]  # of the benchmark


@dataclass(frozen=True, kw_only=True)
class MethodOptions(RegistrationSettings, DeviceOptions):
    """Options of the registration method.

    Args:
        weights: a trained network, as a file (.safetensors, .ckpt, .pth) or a name that `voxelwave weights` lists: a
            NestedMorph, whose displacement starts the refinement, or a network that finds tissues, by which brain scans
            of two contrasts are brought into one.
        cache: a folder in which affine alignments are kept for later runs.
    """

    weights: Path | None = None
    cache: Path | None = None

    @property
    def weights_file(self) -> Path | None:
        """The file of the weights."""
        return None if self.weights is None else find_weights(self.weights, "registration")

    @property
    def chosen_method(self) -> Method:
        """The method, with the default filled in."""
        return self.method or method_of_weights(self.weights_file)

    @property
    def settings(self) -> RegistrationSettings:
        """The settings on which results depend, with the default method filled in."""
        values = {option.name: getattr(self, option.name) for option in fields(RegistrationSettings)}
        return RegistrationSettings(**values | {"method": self.chosen_method})

    def check(self) -> None:
        super().check()
        fitting = method_of_weights(self.weights_file)
        if self.weights is not None and self.chosen_method != fitting:
            raise UsageError(f"--weights {self.weights} needs --method {fitting}, got --method {self.chosen_method}")
        if self.weights is None and self.chosen_method in ("nestedmorph", "tissues"):
            raise UsageError(
                f"--method {self.chosen_method} needs a trained network: give --weights, or use --method field"
            )
        if self.method == "syn":
            must_have("--method syn", "registration")
        if self.transform in ("rigid", "affine") and self.chosen_method != "field":
            raise UsageError(f"--transform {self.transform} needs --method field, got --method {self.chosen_method}")
        must_exist(self.weights_file, "file of weights")
        if self.cache is not None:
            must_be_writable(self.cache, "folder")


@dataclass(frozen=True, kw_only=True)
class Register(MethodOptions, FolderOptions):
    """Align MOVING to FIXED, or all pairs of a folder, and write warped scans, transforms, a record and a picture.

    A diffusion series (4-D, with .bval and .bvec beside it) is aligned by its mean b0 image. If MOVING is a diffusion
    series, each of its volumes is resampled and its b-vectors are rotated accordingly. If both images are DICOM, the
    warped scan is also written as a derived series (warped_dicom/) and the transform as a Deformable Spatial
    Registration object (registration.dcm).

    With --input instead of MOVING and FIXED, every pair of a table (--pairs, or pairs.tsv in the folder) or of a BIDS
    folder (--bids) is aligned. OUTPUT then receives a folder per pair, manifest.jsonl and index.html. A pair that fails
    is recorded with its reason and the others continue (exit code 3); the same command again does only what is missing
    or changed.

    Args:
        moving: the scan to move: NIfTI, .mgz, .nrrd, or a folder with one DICOM series; it may be a single slice or a
            picture (.png, .tif and others) if FIXED is one too.
        fixed: the scan to align it to, in any of the same formats; its grid is that of the result.
        output: the folder to write to: warped.nii.gz, forward.nii.gz and inverse.nii.gz (ITK displacement fields),
            affine.mat, record.json, picture.png, and searched.png if the network chooses which regions to search.
        moving_labels: a label map on the grid of MOVING, to be moved too (nearest neighbour).
        fixed_labels: a label map on the grid of FIXED, to measure the overlap (Dice, HD95) before and after.
        moving_mask: a mask on the grid of MOVING; voxels that are 0, such as a lesion, are not compared.
        fixed_mask: a mask on the grid of FIXED; voxels that are 0 are not compared.
        reversed_b0: a b0 image of the same session with reversed phase encoding, on the grid of the diffusion scan;
            the distortion is measured from this image and the b0 image of the scan.
        initial: a linear transform (.mat, .txt, .tfm, .lta) from which the registration starts: fixed to moving, as
            `register` writes it.
        jacobian: also write jacobian.nii.gz, the Jacobian determinant of the map.
        dicom: write DICOM results even if only MOVING is DICOM.
        fix_tilt: straighten the slices of a CT with a tilted gantry, with one interpolation; without this option such a
            CT is refused. With it, no DICOM results are written.
        pairs: a table (.tsv, .csv, .json) with the columns moving and fixed (paths in the folder) and optionally
            moving_labels, fixed_labels, moving_mask, fixed_mask, contrast.
        guard: what to do if the result is not credible because it fits no better than when it is displaced, or worse
            than at the start: refuse it (exit code 4; in a folder, the pair is refused), or write it and warn.
        bids: MOVING,FIXED as BIDS names, such as T1w,FLAIR or acq-highres_T1w,dwi: one pair per session; with ses-1 in
            a name, that session's image is used for all sessions of the subject.
    """

    archives = ("moving", "fixed", "input", "reversed_b0")
    writes = (
        "warped.nii.gz",
        *(FORWARD, INVERSE, AFFINE),
        "record.json",
        "registration.html",
        "picture.png",
        "searched.png",
        "jacobian.nii.gz",
        "warped_labels.nii.gz",
        "warped.bv*",
        "warped_dicom/*",
        "registration.dcm",
    )

    moving: Path | None = field(default=None, kw_only=False)
    fixed: Path | None = field(default=None, kw_only=False)
    output: Path
    moving_labels: Path | None = None
    fixed_labels: Path | None = None
    moving_mask: Path | None = None
    fixed_mask: Path | None = None
    reversed_b0: Path | None = None
    initial: Path | None = None
    jacobian: bool = False
    dicom: bool = False
    fix_tilt: bool = False
    pairs: Path | None = None
    bids: str | None = None
    guard: Literal["refuse", "warn"] = "refuse"

    @property
    def of_folder(self) -> bool:
        """Whether many pairs are aligned."""
        return self.input is not None or self.pairs is not None

    @property
    def opening(self) -> str:
        return "" if self.of_folder else "reading the scans"

    def check(self) -> None:
        super().check()
        if self.of_folder:
            self._check_folder()
            return
        if self.moving is None or self.fixed is None:
            raise UsageError("expected MOVING and FIXED, or --input with --pairs or --bids")
        for path in (self.moving, self.fixed, *self._of_one_pair()):
            must_exist(path, "scan")
        if self.initial is not None and self.reversed_b0 is not None:
            raise UsageError("--initial and --reversed-b0 do not go together: leave one out")
        if self.initial is not None and self.initial.suffix.lower() not in (".mat", ".txt", ".tfm", ".lta"):
            raise UsageError(f"--initial must be a linear transform (.mat, .txt, .tfm, .lta), got {self.initial}")

    def earlier(self) -> list[Path]:
        return [] if self.of_folder else super().earlier()  # a run over a folder continues

    def _of_one_pair(self) -> tuple[Path | None, ...]:
        """The files beside a single pair of scans."""
        return (
            self.moving_labels,
            self.fixed_labels,
            self.moving_mask,
            self.fixed_mask,
            self.reversed_b0,
            self.initial,
        )

    def _check_folder(self) -> None:
        if any(path is not None for path in (self.moving, self.fixed, *self._of_one_pair())):
            raise UsageError(
                "--input and --pairs name the scans: leave out MOVING, FIXED, label maps, masks, --reversed-b0 and"
                " --initial"
            )
        if self.input is not None and not self.input.is_dir():
            raise FileNotFoundError(f"no folder at {self.input}")
        must_exist(self.pairs, "table of pairs")
        if self.bids is not None:
            names = [name.strip() for name in self.bids.split(",")]
            if len(names) != 2 or not all(names) or self.pairs is not None:
                raise UsageError(f"--bids takes MOVING,FIXED such as T1w,FLAIR, without --pairs, got {self.bids!r}")
        elif self.input is not None and self.pairs is None and not any((self.input / n).is_file() for n in PAIR_LISTS):
            lists = ", ".join(PAIR_LISTS)
            raise UsageError(f"{self.input} holds none of {lists}: give --pairs TABLE or --bids MOVING,FIXED")


@dataclass(frozen=True, kw_only=True)
class Apply(OutputOptions):
    """Resample IMAGE through a TRANSFORM onto the grid of another image, with one interpolation, or move points.

    With --points instead of IMAGE, the points of a table or of a surface are moved as the image is: from the space of
    the moving image to that of the fixed one, or with --inverse the other way.

    Args:
        transform: a folder written by `register`, or a transform file (.nii.gz field, .h5, .mat, .txt, .tfm, .lta).
        image: the images to move, 3-D or 4-D, or a folder of .nii, .nii.gz and .mgz files, each of which is moved; for
            several images or a folder, OUTPUT is a folder.
        like: the image that defines the grid of the result: the fixed image, or with --inverse the moving one.
        output: the .nii.gz, .nii or .mgz file to write; for several images, the folder to write to; for points, a file
            of the same kind.
        points: a .csv or .tsv file with the columns x, y and z (others are kept), or a GIFTI surface (.gii).
        points_space: the axes of a table of points: ras (NIfTI, 3D Slicer's default) or lps (ITK, ANTs, DICOM); in mm.
        inverse: map from the fixed to the moving image's space; a single file is inverted numerically.
        interpolation: linear, nearest (keeps the values), or cubic (sharper; can exceed the range at edges).
        labels: IMAGE is a label map: the same as --interpolation nearest.
        fix_tilt: straighten the slices of a CT with a tilted gantry first, as in `register`.
    """

    output_is = "either"
    archives = ("image", "like")

    transform: Path = field(kw_only=False)
    image: tuple[Path, ...] = field(default=(), kw_only=False)
    like: Path | None = None
    output: Path
    points: Path | None = None
    points_space: Literal["ras", "lps"] = "ras"
    inverse: bool = False
    interpolation: Literal["linear", "nearest", "cubic"] = "linear"
    labels: bool = False
    fix_tilt: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", tuple(self.image))

    def check(self) -> None:
        super().check()
        must_exist(self.transform, "transform")
        if self.points is not None:
            self._check_points(self.points)
            return
        if not self.image or self.like is None:
            raise UsageError("expected IMAGE and --like, or --points")
        if self.labels and self.interpolation == "cubic":
            raise UsageError("--labels needs nearest-neighbour interpolation, got --interpolation cubic")
        for image in (*self.image, self.like):
            must_exist(image, "image")
        if self.several:
            if self.output.is_file() or any(self.output.resolve() == image.resolve() for image in self.image):
                raise UsageError(f"--output must be another folder than the images, got {self.output}")
            targets = self.targets
            if twice := sorted({name for name in targets.values() if list(targets.values()).count(name) > 1}):
                raise UsageError(f"several images would be written to {twice[0]}: move them one by one")
            self._check_targets([self.output / name for name in targets.values()])
            return
        if not self.is_written(self.output):
            raise UsageError(f"--output must end in .nii, .nii.gz or .mgz, got {self.output}")
        must_be_writable(self.output, "file")
        self._check_targets([self.output])

    def _check_points(self, points: Path) -> None:
        if self.image or self.like is not None:
            raise UsageError("--points takes the place of IMAGE and --like: leave them out")
        must_exist(points, "file of points")
        suffix, wanted = self.output.suffix.lower(), points.suffix.lower()
        if wanted not in POINT_SUFFIXES:
            raise UsageError(f"--points must be a .csv, .tsv or .gii file, got {points}")
        if suffix not in ((wanted,) if wanted == ".gii" else POINT_SUFFIXES[:2]):
            raise UsageError(f"--output must be a file of points like {points.name}, got {self.output}")
        if wanted == ".gii" and self.points_space == "lps":
            raise UsageError("--points-space lps is for tables; the points of a surface are in RAS")
        must_be_writable(self.output, "file")
        if self.output.resolve() == points.resolve():
            raise UsageError(f"--output must be another path than the points, got {self.output}")

    def _check_targets(self, targets: list[Path]) -> None:
        """Refuse to overwrite an input, or a file of the transform's folder."""
        sources = {path.resolve() for path in (self.transform, *self.image, self.like) if path is not None}
        for target in targets:
            inside = self.transform.is_dir() and target.resolve().parent == self.transform.resolve() and target.exists()
            if target.resolve() in sources or inside:
                raise UsageError(f"--output must be another path than the inputs, got {target}")

    def earlier(self) -> list[Path]:
        if not self.several:
            return super().earlier()
        return existing(*(self.output / name for name in self.targets.values()))

    @property
    def several(self) -> bool:
        """Whether OUTPUT is a folder."""
        return len(self.image) > 1 or bool(self.image and self._in_folder(self.image[0]))

    @property
    def targets(self) -> dict[Path, str]:
        """Each image, also those in folders -> the name of its result in the folder OUTPUT."""
        images = [image for given in self.image for image in (self._in_folder(given) or [given])]
        return {image: image.name if self.is_written(image) else f"{image.name}.nii.gz" for image in images}

    @classmethod
    def _in_folder(cls, folder: Path) -> list[Path]:
        """The images of a folder; empty for a single image, such as a DICOM series."""
        if not folder.is_dir():
            return []
        return sorted(path for path in folder.iterdir() if cls.is_written(path) and not is_hidden(Path(path.name)))

    @staticmethod
    def is_written(path: Path) -> bool:
        """Whether the name of a file has the extension of a format in which images are written."""
        return path.name.lower().endswith((".nii", ".nii.gz", ".mgz"))


@dataclass(frozen=True, kw_only=True)
class Transform(OutputOptions):
    """Describe a TRANSFORM, convert it to another format, or write the map of its Jacobian determinant.

    The format follows from the name of OUTPUT: .mat, .txt or .tfm (ITK, ANTs, 3D Slicer) and .lta (FreeSurfer) for a
    linear transform, .nii.gz for a displacement field, .h5 for any. Transforms map points of the fixed image to the
    moving image, as ITK's do; an .lta file has the reverse direction, which is taken into account.

    Args:
        transform: a folder written by `register`, or a transform file (.nii.gz field, .h5, .mat, .txt, .tfm, .lta).
        output: the file to write; without it, the transform is only described.
        inverse: take the inverse; a displacement field needs --moving, on whose grid its inverse is given.
        linear: take only the linear part of a displacement field; of a folder, its affine.mat.
        jacobian: a .nii.gz file for the map of the Jacobian determinant: the volume in the moving image for each unit
            of volume in the fixed one; 0 or less where the map folds.
        fixed: the fixed image: the grid for a linear transform that is written as a field or as a Jacobian map, and
            the geometry that an .lta file describes.
        moving: the moving image: the grid for the inverse of a field, and the geometry that an .lta file describes.
    """

    output_is = "file"
    archives = ("fixed", "moving")

    transform: Path = field(kw_only=False)
    output: Path | None = None
    inverse: bool = False
    linear: bool = False
    jacobian: Path | None = None
    fixed: Path | None = None
    moving: Path | None = None

    def check(self) -> None:
        super().check()
        must_exist(self.transform, "transform")
        must_exist(self.fixed, "image")
        must_exist(self.moving, "image")
        if any(path is not None and path.suffix.lower() == ".h5" for path in (self.transform, self.output)):
            must_have("an .h5 file", "registration")
        for path in (self.output, self.jacobian):
            if path is not None and path.resolve() == self.transform.resolve():
                raise UsageError(f"the file to write must be another path than the transform, got {path}")
        if self.output is not None and not self.output.name.lower().endswith(TRANSFORM_SUFFIXES):
            raise UsageError(f"--output must end in {', '.join(TRANSFORM_SUFFIXES)}, got {self.output}")
        if self.jacobian is not None:
            if not Apply.is_written(self.jacobian):
                raise UsageError(f"--jacobian must end in .nii, .nii.gz or .mgz, got {self.jacobian}")
            must_be_writable(self.jacobian, "file")

    def earlier(self) -> list[Path]:
        return [*super().earlier(), *existing(self.jacobian)]


@dataclass(frozen=True, kw_only=True)
class Train(TrainingSettings, ResumeOptions, DeviceOptions):
    """Train NestedMorph on pairs of scans, or on images drawn from label maps, and keep the best weights.

    Subjects are divided into train (80 %), val and test (10 % each). The best epoch has the highest Dice on val, or
    without label maps the lowest loss. With --synthetic in place of --pairs, each pair of images is drawn from one
    label map, with random deformations, contrasts, resolutions and noise; the last three maps by name are val.

    Args:
        pairs: a list (.csv, .tsv, .json with columns moving, fixed and optionally moving_labels, fixed_labels,
            subject, split), or a BIDS-like folder (sub-*/anat/*_T1w.nii.gz, sub-*/dwi/*_dwi.nii.gz).
        output: the folder to write to: network.safetensors (for register --weights), checkpoints, logs, cache.
    """

    writes = ("network.safetensors",)

    pairs: Path | None = None
    output: Path
    checkpoint = CHECKPOINT

    @property
    def settings(self) -> TrainingSettings:
        """Only the settings of the training."""
        return TrainingSettings(**{option.name: getattr(self, option.name) for option in fields(TrainingSettings)})

    def check(self) -> None:
        super().check()
        at_least(
            1,
            epochs=self.epochs,
            epoch_steps=self.epoch_steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
        )
        if (self.pairs is None) == (self.synthetic is None):
            raise UsageError(f"give either --pairs or --synthetic, got {'neither' if self.pairs is None else 'both'}")
        at_least(0, one_contrast_epochs=self.one_contrast_epochs, workers=self.workers)
        if self.longest_gradient < 0:
            raise UsageError(f"--longest-gradient must not be negative, got {self.longest_gradient:g}")
        if self.similarity_weight == self.label_weight == self.correspondence_weight == 0:
            raise UsageError(
                "--similarity-weight, --label-weight or --correspondence-weight must be above 0, got 0 for all three"
            )
        if self.synthetic is None and max(self.correspondence_weight, self.one_contrast_epochs, self.workers) > 0:
            raise UsageError("--correspondence-weight, --one-contrast-epochs and --workers need --synthetic")
        if self.width is not None and (self.width < 16 or self.width % 2):
            raise UsageError(f"--width must be an even number from 16, got {self.width}")
        must_exist(self.pairs, "list or folder of pairs")
        must_exist(self.synthetic, "folder of label maps")
        if self.synthetic is not None and self.label_weight == self.correspondence_weight == 0:
            raise UsageError(
                "--synthetic needs --label-weight or --correspondence-weight above 0, since its images have no contrast"
                " in common"
            )
        if self.pairs is None:
            return
        if (self.atlas is not None) != (self.task == "atlas-to-patient") and self.pairs.is_dir():
            raise UsageError(f"--atlas is needed for --task atlas-to-patient and only for it, got --task {self.task}")
        must_exist(self.atlas, "atlas")


@dataclass(frozen=True, kw_only=True)
class TrainTissues(TissueTrainingSettings, ResumeOptions, DeviceOptions):
    """Train the network that finds tissues in brain scans of any contrast, on images drawn from LABELS.

    Each image is drawn from one label map, with a random contrast, deformation, resolution, field of view, bias field
    and noise; no scan is seen. The last three maps by name are for validation. `register --weights` brings scans of two
    contrasts into one by this network.

    Args:
        labels: a folder of label maps with FreeSurfer's numbers (.nii, .nii.gz, .mgz).
        output: the folder to write to: network.safetensors (for register --weights), checkpoints, metrics.csv.
    """

    writes = ("network.safetensors",)

    labels: Path = field(kw_only=False)
    output: Path
    checkpoint = CHECKPOINT

    @property
    def settings(self) -> TissueTrainingSettings:
        """Only the settings of the training."""
        names = [option.name for option in fields(TissueTrainingSettings)]
        return TissueTrainingSettings(**{name: getattr(self, name) for name in names})

    def check(self) -> None:
        super().check()
        at_least(1, epochs=self.epochs, epoch_steps=self.epoch_steps)
        at_least(0, workers=self.workers)
        if self.width < 8 or self.width % 8:
            raise UsageError(f"--width must be a multiple of 8, got {self.width}")
        must_exist(self.labels, "folder of label maps")
        if self.start_from is not None:
            must_exist(find_weights(self.start_from, "registration"), "file of weights")


@dataclass(frozen=True, kw_only=True)
class Evaluate(MethodOptions, OutputOptions):
    """Register every pair of a list and print a table of label overlap, folding and time.

    OUTPUT receives evaluation.csv (a row per pair and method) and evaluation.json (mean and spread over the pairs,
    options, versions). A pair that fails is listed with its reason and the others continue (exit code 3).

    Args:
        pairs: a list (.csv, .tsv, .json) with columns moving, fixed and optionally moving_labels, fixed_labels,
            moving_mask, fixed_mask (voxels that are 0 are not compared), subject, split, contrast.
        output: the folder to write to.
        baseline: also run ANTs SyN on every pair.
        split: only use the pairs of this split.
    """

    writes = ("evaluation.csv", "evaluation.json")

    pairs: Path = field(kw_only=False)
    output: Path
    baseline: bool = False
    split: Literal["all"] | Split = "all"

    def check(self) -> None:
        super().check()
        must_exist(self.pairs, "list of pairs")


@dataclass(frozen=True, kw_only=True)
class CrossValidate(RegistrationSettings, DeviceOptions, WorkerOptions):
    """Measure registration on held-out pairs, with settings chosen on pairs of other people.

    Each pair needs both label maps. Folds are by person: no person of a held-out pair is in a pair on which its
    settings were chosen. If people are linked by pairs, the pairs whose two people fall into different folds are left
    out. For each fold, the settings with the best mean Dice on the other folds are taken. No network is trained. OUTPUT
    receives report.html, results.json, units.csv, plan.json and cells/ with every single registration; after a kill,
    the same command continues the run and gives the same figures.

    Args:
        pairs: a list (.csv, .tsv, .json) with columns moving, fixed, moving_labels, fixed_labels and optionally
            subject, fixed_subject, contrast, moving_mask, fixed_mask.
        output: the folder to write to.
        space: setting -> values to try: similarity, effort, diffeomorphic, transform, and network (whether the network
            of --weights starts the refinement). Default: similarity auto and mind, effort fast and standard, and
            network if there are weights.
        weights: a trained NestedMorph (.safetensors, .ckpt, .pth).
        cache: a folder in which affine alignments are kept for later runs; by default in the output folder.
        objective: the figure by which settings are chosen: the mean Dice, or the mean 95 % Hausdorff distance in mm.
        baseline: also run ANTs SyN on every pair.
        folds: number of folds.
        title: title of the report.
    """

    pairs: Path = field(kw_only=False)
    output: Path
    space: dict[str, list[str | bool]] | None = None
    weights: Path | None = None
    cache: Path | None = None
    objective: Literal["dice", "hd95_mm"] = "dice"
    baseline: bool = False
    folds: int = 5
    title: str | None = None

    def check(self) -> None:
        super().check()
        at_least(2, folds=self.folds)
        must_exist(self.pairs, "list of pairs")
        must_exist(self.weights, "file of weights")
        if self.method not in (None, "field"):
            raise UsageError(f"--method is a setting of --space here (network: [false, true]), got {self.method}")


@dataclass(frozen=True, kw_only=True)
class Export(OnnxOptions):
    """Write a trained NestedMorph as an ONNX file, which other programs run without PyTorch.

    The file takes images of any size in multiples of 32 voxels, from 64; pad other images with 0 before the network,
    and cut its results. If onnxruntime is installed, the file is compared with PyTorch, and is not written if they
    differ by more than rounding. Its metadata hold the version, the card and the preprocessing.

    Args:
        weights: a trained NestedMorph (.safetensors, .ckpt, .pth).
        size: depth, height and width of both images in voxels, multiples of 32, for a file that takes this size
            alone and is written faster. It is needed for a network whose mixer depends on the size of the images.
    """

    weights: Path
    size: tuple[int, int, int] | None = None

    def check(self) -> None:
        super().check()
        if self.size is not None and any(n < 32 or n % 32 for n in self.size):
            raise UsageError(f"--size must be three multiples of 32, got {', '.join(map(str, self.size))}")
        must_exist(self.weights, "file of weights")


@dataclass(frozen=True, kw_only=True)
class Benchmark(OutputOptions):
    """Measure accuracy, time and memory on real scans, for our method and other programs with the same threads.

    The parts are: "field", a T1 scan with a known smooth deformation (peak 8 mm), registered to the T2 scan; "labels",
    every pair of people in both directions, with the overlap of their FreeSurfer labels; "contrasts", the same
    between T2w or FLAIR scans of two patients and T1w scans of other people, with a network that finds tissues;
    "diffusion", T1w and b0 of one person in both directions, with the consistency under known warps (peak 8 mm) and
    the overlap of segmented brain and ventricles; "training", NestedMorph fitted to one pair and then used by
    register; "shift", NestedMorph with and without routing at its coarse stages, trained for minutes to find shifts
    of up to 48 voxels of a texture; "cost", time and memory of the network; "peer", its results and CPU time beside
    the published code. The first four parts also run ANTs SyN; "labels" and "diffusion" run Greedy if picsl_greedy
    is installed, "labels" and "contrasts" run ConvexAdam if convexadam is. OUTPUT receives benchmark-PART.json.

    Args:
        data: the folder of scans, with mri_ms_multimodal/, mri_t1_labels/ and mri_t1_dwi/ as the tests use it.
        output: the folder to write to.
        part: which part to run.
        seeds: number of random deformations for "field", and of each kind for "diffusion".
        spacings: voxel spacings of the images for "labels", in mm; 2 and 1 by default.
        methods: methods to run for "labels", "contrasts" and "diffusion", by the names in their tables; all by default.
        weights: the network that finds tissues for "contrasts", as a file or a name.
        threads: threads of PyTorch, and of ANTs for SyN.
        published: for "peer", a Python file with the published model, which is run as it is, such as
            Models/NestedMorph/models.py of its repository; by default a plain form written from its description.
        quick: leave out the images of 160 x 192 x 224 voxels in "peer", which take minutes and 8 GiB of memory.
        resume: for "labels", "contrasts" and "diffusion", keep the figures that an earlier run wrote to OUTPUT with the
            same scans, seeds and threads, and measure only what is missing.
    """

    data: Path = field(kw_only=False)
    output: Path
    part: Literal["all"] | Part = "all"
    seeds: int = 3
    spacings: list[float] | None = None
    methods: list[LabelMethod | DiffusionMethod] | None = None
    weights: Path = Path("brain-any-contrast")
    threads: int = 2
    published: Path | None = None
    quick: bool = False
    resume: bool = False

    def check(self) -> None:
        super().check()
        at_least(1, seeds=self.seeds, threads=self.threads)
        if self.resume and self.part not in ("labels", "contrasts", "diffusion"):
            raise UsageError(f"--resume needs --part labels, contrasts or diffusion, got {self.part}")
        resume_or_overwrite(resume=self.resume, overwrite=self.overwrite)
        if self.spacings is not None and min(self.spacings, default=0) <= 0:
            raise UsageError(f"--spacings must be positive lengths in mm, got {self.spacings}")
        known = {"labels": LABEL_METHODS, "contrasts": CONTRAST_METHODS, "diffusion": DIFFUSION_METHODS}.get(
            self.part, ()
        )
        unknown = sorted(set(self.methods or ()) - set(known))
        if self.part != "all" and unknown:
            names = ", ".join(known) or "left out"
            raise UsageError(f"--methods of the part {self.part} must be {names}, got {', '.join(unknown)}")
        must_exist(self.published, "file with the published model")
        if self.part not in ("shift", "cost", "peer"):  # these need no scans
            must_exist(self.data, "folder of scans")

    def earlier(self) -> list[Path]:
        return [] if self.resume else earlier_measurements(self.output, self.part, get_args(Part))
