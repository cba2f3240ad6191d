"""`voxelwave restoration cross-validate`: methods on held-out images, with settings chosen on the other images."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...restoration.evaluation import Evaluation, EvaluationImage, evaluation_images
from ...restoration.inference import Refused
from ...restoration.settings import EvaluationSettings, TileSettings
from ...restoration.weights import load_weights
from ...runs.catalogue import entry_of, find_weights
from ...runs.exit import DONE
from ...runs.persons import join_persons
from ...runs.record import sha256
from ...runs.tables import read_table
from ...runs.words import first_few
from ..nested_cv.measure import Grid
from ..nested_cv.measured_records import Figures, MetricText
from ..nested_cv.measured_run import MeasuredStudy, run_measured, settings_grid
from ..nested_cv.records import AuditRow, ModelTexts, Settings
from ..nested_cv.splits import Cohort, group_splits
from .options import CrossValidate

NETWORK = "network"
METRICS: dict[str, MetricText] = {
    "psnr": {"title": "PSNR", "unit": "dB", "higher": True},
    "ssim": {"title": "SSIM", "unit": "", "higher": True},
}
_TITLES = {
    NETWORK: ("network", "trained before, not on the folds"),
    "nlm": ("non-local means", "7 x 7 patches; strength: factor on the noise level"),
    "wavelet": ("wavelets", "BayesShrink; strength: factor on the noise level"),
    "tv": ("total variation", "Chambolle's projection; strength: factor on the weight"),
    "bm3d": ("BM3D", "the authors' package; strength: factor on the noise level"),
    "bicubic": ("bicubic interpolation", "no settings"),
    "input": ("degraded image", "nothing is done"),
}


class ImageMeasure:
    """PSNR and SSIM of the methods on the images of a folder; see `nested_cv.measure.Measure`.

    Args:
        clean: the folder.
        settings: fields of `EvaluationSettings`.
        tiles: fields of `TileSettings`.
        weights: a file of weights.
    """

    def __init__(self, clean: str, settings: dict[str, Any], tiles: dict[str, Any], weights: str | None):
        self._settings = EvaluationSettings(**{**settings, "degraded": _path(settings["degraded"])})
        self._tiles, self._weights = TileSettings(**tiles), weights
        self._networks: dict[str, Evaluation] = {}
        info = None if weights is None else load_weights(weights)[1]
        self.images: list[EvaluationImage] = list(evaluation_images(clean, self._settings, info=info))
        self.scale = self._settings.scale or (1 if info is None else info.scale)
        self.sizes = [] if info is None else _sizes(weights)

    def __call__(self, model: str, unit: int, settings: Settings) -> Figures:
        """PSNR in dB and SSIM of a method on one image."""
        given: dict[str, Any] = dict(settings)
        evaluation = self._evaluation(given.pop("size", "full") if model == NETWORK else None)
        psnr, ssim = evaluation.score(self.images[unit], model, **given)
        return {"psnr": psnr, "ssim": ssim}

    def _evaluation(self, size: str | None) -> Evaluation:
        key = size or ""
        if key not in self._networks:
            network = None if size is None else load_weights(str(self._weights), size=size)[0]
            self._networks[key] = Evaluation(network=network, scale=self.scale, tiles=self._tiles)
        return self._networks[key]


def measure_of(**arguments: Any) -> ImageMeasure:
    """Build the measure of a plan."""
    return ImageMeasure(**arguments)


def cross_validate(options: CrossValidate) -> int:
    """Run the command and return its exit code."""
    weights = None if options.weights is None else find_weights(options.weights, "restoration")
    settings = asdict(EvaluationSettings.of(options))
    arguments = {
        "clean": str(options.clean.resolve()),
        "settings": {**settings, "degraded": None if options.degraded is None else str(options.degraded.resolve())},
        "tiles": asdict(TileSettings.of(options)),
        "weights": None if weights is None else str(weights.resolve()),
    }
    try:
        measure = measure_of(**arguments)
    except Refused as error:
        raise ValueError(str(error)) from error
    names = [image.name for image in measure.images]
    digests = [hashlib.sha256(image.clean.tobytes()).hexdigest() for image in measure.images]
    persons = join_persons(_people(options.people, names), digests)
    cohort = Cohort(tuple(names), (), (), groups=persons)
    grid = _grid(options, measure)
    study = MeasuredStudy(
        cohort=cohort,
        splits=group_splits(cohort, outer=options.folds, seed=options.seed),
        spec={"factory": "restoration-methods", "arguments": arguments},
        grid=grid,
        options={"strengths": options.strengths, "weights": None if weights is None else weights.name},
        data=hashlib.sha256("".join(digests).encode()).hexdigest() + ("" if weights is None else sha256(weights)),
        title=options.title or "Restoration: cross-validation on held-out images",
        description=_description(options, measure),
        unit="image",
        group="person",
        metrics=METRICS,
        models={name: _texts(name) for name in grid},
        flow={"listed": len(names), "analysed": len(names), "groups": len(set(persons)), "excluded": []},
        audit=[_duplicates(names, digests), *_about_weights(weights)],
        limits=_limits(weights),
        seed=options.seed,
    )
    run_measured(options.output, study, options)
    return DONE


def _grid(options: CrossValidate, measure: ImageMeasure) -> Grid:
    """The methods and their settings, the network first and the degraded image last."""
    grid: dict[str, list[Settings]] = {}
    if options.weights is not None:
        space: dict[str, Sequence[Any]] = {"size": measure.sizes} if measure.sizes else {}
        if any(image.rician and image.sigma is not None for image in measure.images):
            space = {**space, "unbiased": [False, True]}
        grid[NETWORK] = settings_grid(space)
    if measure.scale > 1:
        return {**grid, "bicubic": [{}]}
    for method in Evaluation(methods=options.methods).methods or ():
        grid[method] = [{"strength": strength} for strength in options.strengths]
    return {**grid, "input": [{}]}


def _people(path: Path | None, names: Sequence[str]) -> list[str]:
    """The person of each image; the slices of a volume are of one person."""
    files = [name.rpartition(" #")[0] or name for name in names]
    if path is None:
        return files
    columns, rows = read_table(path)
    if not {"file", "person"} <= set(columns):
        raise ValueError(f"{path} must have the columns file and person, got {', '.join(columns)}")
    persons = {row["file"]: row["person"] for _, row in rows}
    missing = sorted({file for file in files if not persons.get(file)})
    if missing:
        raise ValueError(f"{path} must name the person of every image, it does not for {first_few(missing)}")
    return [persons[file] for file in files]


def _sizes(weights: str | None) -> list[str]:
    entry = None if weights is None else entry_of(Path(weights))
    return [] if entry is None else entry.sizes


def _texts(name: str) -> ModelTexts:
    title, description = _TITLES[name]
    return {"title": title, "description": description}


def _description(options: CrossValidate, measure: ImageMeasure) -> list[str]:
    first = measure.images[0]
    evaluation = replace(Evaluation(scale=measure.scale), rows={})
    settings = EvaluationSettings.of(options)
    if settings.degraded is not None:
        how = "The degraded partners of the images were given."
    elif measure.scale > 1:
        how = f"The images were shrunk by {measure.scale} with bicubic interpolation."
    else:
        noise = settings.noise or {"kind": "gaussian"}
        level = "" if settings.sigma is None else f" of standard deviation {settings.sigma:g}"
        how = f"The images were degraded: {noise['kind']}{level}, seed {settings.seed}."
    return [how, f"Range of the first image: {first.intensity_range}.", evaluation.conditions().replace(" [],", ",")]


def _duplicates(names: Sequence[str], digests: Sequence[str]) -> AuditRow:
    groups: dict[str, list[str]] = {}
    for name, digest in zip(names, digests, strict=True):
        groups.setdefault(digest, []).append(name)
    same = [" and ".join(some) for some in groups.values() if len(some) > 1]
    check = "equal images under two names"
    if same:
        return {"check": check, "outcome": "warning", "detail": f"kept together: {first_few(same)}"}
    return {"check": check, "outcome": "ok", "detail": "none"}


def _about_weights(weights: Path | None) -> list[AuditRow]:
    if weights is None:
        return []
    entry = entry_of(weights)
    detail = "unknown training data" if entry is None else f"trained on: {entry.data}"
    check = "weights not trained on these images"
    return [{"check": check, "outcome": "not checked", "detail": detail}]


def _limits(weights: Path | None) -> list[str]:
    limits = [
        "One partition of the images.",
        "Images of one source: other scanners, contrasts or noise are not tested.",
    ]
    if weights is not None:
        limits.append("The network was trained before; if it saw these images, its figures are too optimistic.")
    return limits


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
