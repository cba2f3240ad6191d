"""Options of `voxelwave scanpath`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ...runs.catalogue import find_weights
from ...runs.exit import UsageError
from ...scanpath.suffixes import PICTURE_SUFFIXES
from ...scanpath.training_settings import TrainingSettings
from ..options import (
    DeviceOptions,
    InputOptions,
    OnnxOptions,
    Options,
    OutputOptions,
    ResumeOptions,
    ThreadOptions,
    WorkerOptions,
    at_least,
    earlier_measurements,
    existing,
    must_exist,
)

LAST = "last.ckpt"
Part = Literal["decoding", "planted"]  # of the benchmark


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """The scanpaths that a command reads.

    Args:
        data: scanpaths: a .json file in our own or the Search Target Inference format, a folder with three .csv tables,
            or a folder with COCO boxes and COCO-Search18 fixations.
        output: the folder to write to.
        long_trials: drop leaves out trials longer than the mean plus three standard deviations, as published for OAT.
        duplicates: report trials that are copies of each other as an error, or drop the copies.
    """

    data: Path = field(kw_only=False)
    output: Path
    long_trials: Literal["keep", "drop"] = "keep"
    duplicates: Literal["error", "drop"] = "error"

    def check(self) -> None:
        super().check()
        must_exist(self.data, "scanpaths")


@dataclass(frozen=True, kw_only=True)
class Train(TrainingSettings, DataOptions, ResumeOptions, DeviceOptions, ThreadOptions):
    """Train OAT on the scanpaths of DATA, for use with `predict` and `evaluate`.

    A share of the layouts (or people, or targets) is kept for validation. The validation loss decides when to stop and
    which epoch is kept, so it is optimistic; for an unbiased figure run `voxelwave scanpath cross-validate`. OUTPUT
    receives model.safetensors, curve.csv (a row per epoch), last.ckpt and record.json.
    """

    writes = ("model.safetensors",)

    def check(self) -> None:
        super().check()
        at_least(1, epochs=self.epochs, patience=self.patience, batch=self.batch)
        if not 0 < self.validation_share <= 0.5:
            raise UsageError(f"--validation-share must be above 0 and at most 0.5, got {self.validation_share}")


@dataclass(frozen=True, kw_only=True)
class Predict(ThreadOptions, InputOptions, OutputOptions):
    """Predict scanpaths on one scene, or on every scene of a folder, with trained weights.

    OUTPUT receives prediction.json (for each path the objects, positions and log-probabilities; for each object the
    probability that it is fixated and the attention on it) and scanpath.png (numbered fixations over the image of the
    scene, or over its boxes if there is no image; maps of that probability and of the attention). If there are several
    scenes, each gets a separate folder, and predictions.csv lists all of them; a scene that is damaged or does not
    fit the weights is recorded with its reason, and the others continue (exit code 3).

    Args:
        scene: a .json file with scenes as described in docs/scanpath_format.md, or a folder of such files or of our
            tables, trials in which are ignored; or a picture (.png, .jpg and others) or a folder of pictures, whose
            objects are then the cells of a grid, since no detector looks for objects in it.
        output: the folder to write to.
        grid: rows and columns of the grid on a picture; by default those for which the weights were trained, or else 4
            and 6.
        weights: model.safetensors of a training, or a name that `voxelwave weights` lists, such as planted-observer.
        samples: number of scanpaths to draw for each scene.
        decode: greedy takes the most likely object at each step, beam the most likely scanpath that it finds, sample
            draws scanpaths.
        temperature: temperature of the draws; values below 1 favour likely objects.
        beam_width: scanpaths that a beam keeps at each step.
        max_length: largest number of fixations; by default the longest scanpath of the training.
        no_pictures: write no pictures.
        seed: seed of the draws.
    """

    first_word = "scene"
    archives = ("input",)
    writes = ("prediction.json", "scanpath.png", "predictions.csv", "*/prediction.json", "*/scanpath.png")

    scene: Path | None = field(default=None, kw_only=False)
    output: Path
    grid: tuple[int, int] | None = None
    weights: str
    samples: int = 10
    decode: Literal["greedy", "sample", "beam"] = "sample"
    temperature: float = 1.0
    beam_width: int = 8
    max_length: int | None = None
    no_pictures: bool = False
    seed: int = 0

    def check(self) -> None:
        super().check()
        must_exist(self.input, "scene or folder")
        if self.input.is_file() and self.input.suffix.lower() not in (".json", *PICTURE_SUFFIXES):
            raise UsageError(
                f"SCENE must be a .json file, a folder or a picture, got {self.input};"
                " `voxelwave scanpath import` reads the files of eye trackers"
            )
        at_least(1, grid=None if self.grid is None else min(self.grid))
        at_least(1, samples=self.samples, max_length=self.max_length, beam_width=self.beam_width)


@dataclass(frozen=True, kw_only=True)
class Import(OutputOptions):
    """Turn fixations from the FILES of an eye tracker into the scanpaths that the other commands read.

    FILES are EyeLink's .asc files (from edf2asc, with events) or tables of fixations (.tsv, .csv, .txt) with a header
    and times in milliseconds, whose columns are recognised by the usual names. Each fixation belongs to the picture
    that its trial names. The objects are those of --scenes, or the cells of a grid on each picture in --pictures.

    Args:
        files: the files of the eye tracker; one or more.
        output: the .json file to write, in the format of docs/scanpath_format.md.
        scenes: scenes with boxes, as described there; trials in them are ignored.
        pictures: a folder of pictures with the names that the files of the eye tracker use.
        grid: rows and columns of the grid on each picture.
        origin: the place of the upper left corner of the pictures on the screen, in pixels (x, y).
        columns: our names (scene, person, trial, x, y, onset, duration) to the names of columns in tables, such as
            {x: FIX_X}.
        eye: the eye to take, if an .asc file has both.
    """

    output_is = "file"

    files: tuple[Path, ...] = field(default=(), kw_only=False)
    output: Path
    scenes: Path | None = None
    pictures: Path | None = None
    grid: tuple[int, int] = (4, 6)
    origin: tuple[float, float] = (0.0, 0.0)
    columns: dict[str, str] | None = None
    eye: Literal["left", "right"] = "right"

    def check(self) -> None:
        super().check()
        if not self.files:
            raise UsageError("FILES must be given")
        for file in self.files:
            must_exist(file, "file of fixations")
        if (self.scenes is None) == (self.pictures is None):
            raise UsageError("give one of --scenes and --pictures")
        must_exist(self.scenes, "scenes")
        must_exist(self.pictures, "folder of pictures")
        at_least(1, grid=min(self.grid))
        if self.output.suffix != ".json":
            raise UsageError(f"--output must end in .json, got {self.output}")


@dataclass(frozen=True, kw_only=True)
class Evaluate(DataOptions, ThreadOptions, OutputOptions):
    """Compare trained weights, and simpler models fitted on the training part of each fold, with people's scanpaths.

    OUTPUT receives results.csv (each figure of each model with its bootstrap interval over layouts), results.json (the
    same, differences between models, options and versions), trials.csv (a row per model and trial) and results.png.

    Args:
        weights: a trained network (.safetensors), or a name that `voxelwave weights` lists.
        target_position: whether models are given the position of the target; hide it to model search.
        split: what the training and the test part of a fold do not share.
        folds: number of folds.
        samples: scanpaths that each model draws for a scene.
        only_unseen: test only on layouts that the weights were not trained on.
        resamples: bootstrap resamples.
        seed: seed of the folds, the drawn scanpaths and the bootstrap.
    """

    writes = ("results.csv", "results.json", "trials.csv", "results.png")

    weights: str | None = None
    target_position: Literal["hidden", "given"] = "hidden"
    split: Literal["layout", "person", "target"] = "layout"
    folds: int = 5
    samples: int = 10
    only_unseen: bool = False
    resamples: int = 1000
    seed: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, samples=self.samples, resamples=self.resamples)
        if self.only_unseen and self.weights is None:
            raise UsageError("--only-unseen needs --weights, whose training layouts it leaves out")


@dataclass(frozen=True, kw_only=True)
class CrossValidate(DataOptions, WorkerOptions):
    """Evaluate OAT on the scanpaths of DATA by nested cross-validation, beside simpler models and people.

    Each layout (or person, or target) is tested once. Settings and the number of epochs are chosen by the likelihood of
    inner folds within the training part; then the network is trained once on the whole training part and predicts the
    test part. Simpler models are fitted on the same training parts; people are compared with each other. OUTPUT
    receives results.csv, results.json, trials.csv (a row per model and scanpath), results.png, plan.json and cells/
    with every single fit and the weights of each fold. After a kill, the same command continues the run.

    Args:
        split: what the training and the test part of a fold do not share.
        folds: number of outer folds.
        inner: folds within each training part.
        trials: settings tried in each fold, if there is a space to search.
        target_position: whether the network is given the position of the target; both trains one network of each kind.
        appearance: how the network sees objects: not at all, by the feature vectors of the file, or by crops of the
            images.
        network: settings of all fits: those of the network (d_appearance, d_position, heads, layers, feed_forward,
            dropout, attention_dropout, sigma and so on), lr, weight_decay, ema_decay, batch, mirror, alike.
        space: setting -> values to search.
        epochs: largest number of epochs.
        patience: epochs without a better validation loss before a fit stops.
        samples: scanpaths that each model draws for a scene.
        resamples: bootstrap resamples over layouts.
        seed: the seed from which all others are derived.
    """

    split: Literal["layout", "person", "target"] = "layout"
    folds: int = 5
    inner: int = 2
    trials: int = 1
    target_position: Literal["hidden", "given", "both"] = "both"
    appearance: Literal["none", "features", "cnn"] = "none"
    network: dict[str, Any] | None = None
    space: dict[str, list[Any]] | None = None
    epochs: int = 60
    patience: int = 10
    samples: int = 10
    resamples: int = 1000
    seed: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, epochs=self.epochs, patience=self.patience, trials=self.trials)
        at_least(1, samples=self.samples, resamples=self.resamples)


@dataclass(frozen=True, kw_only=True)
class Export(OnnxOptions):
    """Write a trained OAT as an ONNX file, which other programs run without PyTorch.

    The numbers of scenes, objects and fixations are dynamic. If onnxruntime is installed, the file is compared with
    PyTorch at two sizes, and is not written if they differ by more than rounding. Its metadata hold the version, the
    card and the preprocessing.

    Args:
        weights: model.safetensors of a training, or a name that `voxelwave weights` lists.
    """

    weights: Path

    def check(self) -> None:
        super().check()
        must_exist(find_weights(self.weights, "scanpath"), "file of weights")


@dataclass(frozen=True, kw_only=True)
class Benchmark(ThreadOptions, OutputOptions):
    """Measure decoding and learning on synthetic scenes; OUTPUT receives benchmark-PART.json.

    "decoding" draws one scanpath of at most --steps fixations for each scene of 84 objects, once with a cache of keys
    and values and once by reading the whole path again at every step; both must draw the same paths. The two take
    turns. "planted" trains OAT on a simulated observer whose rule is known (near objects first, red and yellow ones
    before others, seen ones rarely again), and compares it on other scenes with the likelihood of that rule, which no
    model can beat except by chance, and with simpler models; OUTPUT then also receives model.safetensors.

    Args:
        output: the folder to write to.
        part: which figures to measure.
        size: size of the network that decodes: small (width 64, 2 layers) or published (width 512, 4 layers).
        scenes: scenes to decode.
        steps: largest number of fixations.
        repeats: number of timings.
        training_scenes: scenes of the simulated observer, with one scanpath each.
        epochs: training epochs for the simulated observer.
        threads: CPU threads.
        seed: seed of weights, scenes and scanpaths.
    """

    output: Path
    part: Literal["all"] | Part = "all"
    size: Literal["small", "published"] = "small"
    scenes: int = 1000
    steps: int = 20
    repeats: int = 3
    training_scenes: int = 8000
    epochs: int = 12
    threads: int = 1
    seed: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, scenes=self.scenes, steps=self.steps, repeats=self.repeats)
        at_least(1, training_scenes=self.training_scenes, epochs=self.epochs)

    def earlier(self) -> list[Path]:
        model = None if self.part == "decoding" else self.output / "model.safetensors"
        return [*earlier_measurements(self.output, self.part, get_args(Part)), *existing(model)]
