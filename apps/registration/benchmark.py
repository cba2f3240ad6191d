"""`voxelwave registration benchmark`: our registration and other programs, in one run."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import numpy as np
import torch

from ...registration import greedy
from ...registration.acquisition import facts_of
from ...registration.benchmark import known_field_benchmark
from ...registration.benchmark_diffusion import DiffusionPair, diffusion_benchmark, direction
from ...registration.benchmark_labels import LabelledScan, coarser, label_benchmark, missing_package
from ...registration.benchmark_model import model_cost_table
from ...registration.benchmark_peer import LARGE, SMALL, peer_cost_table
from ...registration.benchmark_shift import measure_shift
from ...registration.benchmark_training import OVERFIT, overfit
from ...registration.choices import CONTRAST_METHODS, DIFFUSION_METHODS, FLOW_HEADS, LABEL_METHODS, LabelMethod
from ...registration.nestedmorph_files import read_trained_network
from ...registration.pairs import find_pairs, without_suffix
from ...registration.register import register
from ...registration.series import load_fixed
from ...registration.tissues import read_tissue_net
from ...runs.catalogue import find_weights
from ...runs.exit import UsageError
from ...runs.json_types import read_record
from ...runs.record import sha256, write_measurement
from ...runs.tables import print_rows
from ...volumes import Volume, read_volume, resample
from .options import Benchmark
from .overlap import overlap

_PEOPLE = {
    "mrtrix": ("mrtrix_sub-01/norm.mgz", "mrtrix_sub-01/aparc+aseg.mgz"),
    "fsaverage": ("mne_brains/fsaverage_brain.mgz", "mne_brains/fsaverage_aseg.mgz"),
    "sample": ("mne_brains/sample_brain.mgz", "mne_brains/sample_aseg_3mm.mgz"),
}
_BRAIN_ATLAS = ("native_T1w.nii.gz", "native_brainmask.nii.gz")
_TUNED_PATIENT = "patient07"  # on whom the settings of the registration by tissues were chosen
_HELD_OUT = "sample"  # the settings of the refinement were chosen on pairs of the other people


Method = TypeVar("Method", bound=str)


class Part(NamedTuple):
    """The figures of one part, and the files from which they were computed."""

    title: str
    rows: list[dict[str, Any]]
    inputs: dict[str, Path | None]


def benchmark(options: Benchmark) -> None:
    """Run the command: measure each part, print its table and write benchmark-PART.json."""
    torch.set_num_threads(options.threads)  # ANTs follows, see registration.ants
    for name, measure in PARTS.items() if options.part == "all" else [(options.part, PARTS[options.part])]:
        part = measure(options)
        print_rows(part.title, [{k: v for k, v in row.items() if not isinstance(v, dict)} for row in part.rows])
        _write(options, name, part.rows, part.inputs)


def _write(options: Benchmark, part: str, rows: list[dict[str, Any]], inputs: dict[str, Path | None]) -> None:
    """Write the rows so far, so that a long part loses no finished pair if it is stopped."""
    write_measurement(
        options.output / f"benchmark-{part}.json",
        inputs=inputs,
        rows=rows,
        threads=options.threads,
        seed=list(range(options.seeds)),
        **_means(options, part, rows),
    )


def _means(options: Benchmark, part: str, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    match part:
        case "labels" | "contrasts":
            return {"means": means_of_labels(rows, _label_methods(options, part))}
        case "diffusion":
            return {"means": means_of_diffusion(rows)}
        case _:
            return {}


class _Earlier(TypedDict):
    """What `_write` wrote."""

    inputs: dict[str, dict[str, str]]
    rows: list[dict[str, Any]]
    threads: int
    seed: list[int]


def _earlier_rows(options: Benchmark, part: str, inputs: dict[str, Path | None]) -> list[dict[str, Any]]:
    """With --resume, the rows that an earlier run wrote; else none.

    Raises:
        UsageError: the earlier run had other scans, seeds or threads.
    """
    path = options.output / f"benchmark-{part}.json"
    if not options.resume or not path.is_file():
        return []
    earlier: _Earlier = read_record(path, _Earlier)
    if (earlier["threads"], len(earlier["seed"])) != (options.threads, options.seeds):
        raise UsageError(
            f"{path} was measured with --threads {earlier['threads']} --seeds {len(earlier['seed'])}, got --threads"
            f" {options.threads} --seeds {options.seeds}: give the same, or choose another --output"
        )
    for name, scan in inputs.items():
        if scan is not None and name in earlier["inputs"] and sha256(scan) != earlier["inputs"][name]["sha256"]:
            raise UsageError(f"{path} was measured on another scan in place of {scan}: choose another --output")
    return [{k: float("nan") if v is None else v for k, v in row.items()} for row in earlier["rows"]]


def _field(options: Benchmark) -> Part:
    t1, t2 = _patients(options.data)["patient07"].values()
    results = known_field_benchmark(
        read_volume(t1), read_volume(t2), seeds=range(options.seeds), progress=_print_progress
    )
    title = "A known deformation of T1, registered to T2 (mm inside the brain)"
    return Part(title, [asdict(result) for result in results], {"t1": t1, "t2": t2})


def _labels(options: Benchmark) -> Part:
    people, inputs = _people(options.data)
    rows = _earlier_rows(options, "labels", inputs)
    methods = _label_methods(options, "labels")
    for spacing in options.spacings or (2.0, 1.0):
        scans = {name: coarser(scan, spacing) for name, scan in people.items()}
        for moving, fixed in itertools.permutations(scans, 2):
            known = {"pair": f"{moving} -> {fixed}", "spacing_mm": spacing, "held_out": _HELD_OUT in (moving, fixed)}
            _print_progress(f"{known['pair']} at {spacing:g} mm")
            for method in _missing(methods, rows, known):
                results = label_benchmark(scans[moving], scans[fixed], methods=[method], progress=_print_progress)
                rows += [known | asdict(result) for result in results]
                _write(options, "labels", rows, inputs)
    print_rows("Means over the pairs", means_of_labels(rows, methods))
    return Part("Pairs of people: mean Dice over the common FreeSurfer labels", rows, inputs)


def _contrasts(options: Benchmark) -> Part:
    weights = find_weights(options.weights, "registration")
    network = read_tissue_net(weights)
    people, inputs = _people(options.data)
    labelled = people.pop("mrtrix")  # whose labels are brought to the patients by the T1w scans
    patients = _patients(options.data)
    inputs |= {f"{patient} {name}": file for patient, files in patients.items() for name, file in files.items()}
    inputs["weights"] = weights
    rows = _earlier_rows(options, "contrasts", inputs)
    methods = _label_methods(options, "contrasts")
    for spacing, patient in itertools.product(options.spacings or (2.0,), patients):
        scans = {
            name: coarser(LabelledScan(read_volume(file), labelled.labels), spacing).image
            for name, file in patients[patient].items()
        }
        t1 = scans.pop("T1w")
        brought = register(coarser(labelled, spacing).image, t1).forward
        labels = resample(labelled.labels, t1, brought, order="nearest")
        others = {name: coarser(person, spacing) for name, person in people.items()}
        for (contrast, scan), (name, other) in itertools.product(scans.items(), others.items()):
            one = LabelledScan(scan, labels)
            one_name = f"{patient} {contrast}"
            for moving, fixed, pair in (
                (one, other, f"{one_name} -> {name}"),
                (other, one, f"{name} -> {one_name}"),
            ):
                known = {"pair": pair, "spacing_mm": spacing, "held_out": patient != _TUNED_PATIENT}
                _print_progress(f"{pair} at {spacing:g} mm")
                for method in _missing(methods, rows, known):
                    results = label_benchmark(
                        moving, fixed, methods=[method], network=network, progress=_print_progress
                    )
                    rows += [known | asdict(result) for result in results]
                    _write(options, "contrasts", rows, inputs)
    print_rows("Means over the pairs", means_of_labels(rows, methods))
    return Part("Pairs of people in two contrasts: mean Dice over the common FreeSurfer labels", rows, inputs)


def _patients(data: Path) -> dict[str, dict[str, Path]]:
    """The skull-stripped scans of two patients on one grid each, by contrast."""
    folder = data / "mri_ms_multimodal"
    first, second = folder / "mni" / "patient07", folder / "more/cross_sectional/MNI/patient26"
    ending = "N4_noneck_reduced_winsor_regtoFLAIR_brain_N4_regtoMNI.nii.gz"
    return {
        "patient07": {"T1w": first / "patient07_T1.nii.gz", "T2w": first / "patient07_T2.nii.gz"},
        "patient26": {
            "T1w": second / f"T1_{ending}",
            "T2w": second / f"T2_{ending}",
            "FLAIR": second / f"FLAIR_{ending}",
        },
    }


def _missing(methods: list[Method], rows: list[dict[str, Any]], known: dict[str, Any]) -> list[Method]:
    """The methods without a row that has the known values."""
    measured = {row["method"] for row in rows if known.items() <= row.items()}
    return [method for method in methods if method not in measured]


def _label_methods(options: Benchmark, part: str) -> list[LabelMethod]:
    of_part = CONTRAST_METHODS if part == "contrasts" else [m for m in LABEL_METHODS if m not in ("affine", "tissues")]
    return [name for name in of_part if options.methods is None or name in options.methods]


def means_of_labels(rows: list[dict[str, Any]], methods: Sequence[LabelMethod]) -> list[dict[str, Any]]:
    """The means by spacing and method, over all pairs and over the pairs on which no setting was chosen.

    A method that is not installed has dashes.
    """
    found = []
    for spacing, method in dict.fromkeys((row["spacing_mm"], row["method"]) for row in rows):
        chosen = [row for row in rows if (row["spacing_mm"], row["method"]) == (spacing, method)]
        held_out = [row["dice"] for row in chosen if row["held_out"]]
        found.append(
            {
                "spacing_mm": spacing,
                "method": method,
                "dice": float(np.mean([row["dice"] for row in chosen])),
                "dice_held_out": float(np.mean(held_out)) if held_out else None,
                "cortex": float(np.nanmean([row["cortex"] for row in chosen])),
                "sdlogj": float(np.mean([row["sdlogj"] for row in chosen])),
                "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in chosen])),
            }
        )
    absent = [method for method in methods if missing_package(method) is not None]
    figures = dict.fromkeys(list(found[0]) if found else [], "-")
    spacings = dict.fromkeys(row["spacing_mm"] for row in rows)
    return found + [figures | {"spacing_mm": spacing, "method": method} for spacing in spacings for method in absent]


def _diffusion(options: Benchmark) -> Part:
    pairs = [(without_suffix(pair.fixed).name, pair) for pair in find_pairs(options.data / "mri_t1_dwi", "t1-dwi")]
    inputs: dict[str, Path | None] = {}
    for name, pair in pairs:
        inputs |= {f"{name} T1w": pair.moving, name: pair.fixed}
    rows = _earlier_rows(options, "diffusion", inputs)
    installed = [name for name in DIFFUSION_METHODS if name != "greedy" or greedy.available()]
    methods = [name for name in installed if options.methods is None or name in options.methods]
    for name, pair in pairs:
        missing = [
            (method, swapped)
            for swapped in (False, True)
            for method in _missing(methods, rows, {"pair": direction(name, swapped=swapped)})
        ]
        if not missing:
            continue
        facts, t1 = facts_of(pair, series=(False, True)), read_volume(pair.moving)
        scans = DiffusionPair(name, t1, load_fixed(pair), facts, atlas=_registered_brain(options.data, t1))
        for method, swapped in missing:
            rows += diffusion_benchmark(
                scans, methods=[method], seeds=range(options.seeds), swapped=swapped, progress=_print_progress
            )
            _write(options, "diffusion", rows, inputs)
    print_rows("Means over the pairs", means_of_diffusion(rows))
    return Part("T1w and b0 of one person: consistency under known warps (mm), segmented structures", rows, inputs)


def _registered_brain(data: Path, t1: Volume) -> Volume | None:
    """The brain mask of a person with a T1w scan of the whole head, registered to another; None without these files."""
    scan, mask = (data / "mri_t1_labels" / "mrtrix_sub-01" / name for name in _BRAIN_ATLAS)
    if not (scan.is_file() and mask.is_file()):
        return None
    found = register(read_volume(scan), t1)
    return resample(read_volume(mask), t1, found.forward, order="nearest")


def means_of_diffusion(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The means by method, and the largest loss against the rigid map on any pair, in mm."""
    rigid = {row["pair"]: row["consistency_mm"] for row in rows if row["method"] == "rigid"}
    names = (
        *("consistency_mm", "dice_brain", "hd95_brain_mm", "dice_ventricles", "hd95_ventricles_mm", "swap_mm"),
        *("ssim", "sdlogj", "cpu_seconds"),
    )
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        chosen = [row for row in rows if row["method"] == method]
        losses = [row["consistency_mm"] - rigid[row["pair"]] for row in chosen if row["pair"] in rigid]
        means = {name: _mean([row[name] for row in chosen if name in row]) for name in names}
        found.append({"method": method} | means | {"most_above_rigid_mm": max(losses, default=None)})
    return found


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _training(options: Benchmark) -> Part:
    fixed, moving, inputs = _two_people(options.data)
    rows = []
    for head in FLOW_HEADS:
        _print_progress(f"flow head {head}")
        folder = options.output / ("overfit" if head == "published" else f"overfit-{head}")
        fitted = overfit(moving, fixed, folder, replace(OVERFIT, flow_head=head))
        network = read_trained_network(fitted.weights)
        result = register(moving.image, fixed.image, network=network, progress=_print_progress)
        moved = resample(moving.labels, fixed.labels, result.forward, order="nearest")
        after = {f"registered_{name}": value for name, value in overlap(moved, fixed.labels, "after").items()}
        rows.append({"flow_head": head} | asdict(fitted) | after)
    return Part("NestedMorph fitted to one pair at 64^3, and register with its weights", rows, inputs)


def _cost(options: Benchmark) -> Part:
    rows = [asdict(cost) | {"size": "x".join(map(str, cost.size))} for cost in model_cost_table()]
    return Part("NestedMorph: seconds and peak memory beyond the idle process", rows, {})


def _shift(options: Benchmark) -> Part:
    rows = []
    for mixer in (None, "bilevel(region=[1, 1, 1], top=2)"):
        _print_progress(f"mixer {mixer}")
        rows.append({"mixer": mixer or "as published"} | asdict(measure_shift(mixer)))
    return Part("Errors in voxels for shifts of at most 16 voxels (near) and of 17 to 48 (far)", rows, {})


def _peer(options: Benchmark) -> Part:
    cases = SMALL if options.quick else SMALL + LARGE
    rows = [
        asdict(cost) | {"size": "x".join(map(str, cost.size))}
        for cost in peer_cost_table(cases, published=options.published, progress=_print_progress)
    ]
    name = "the published code" if options.published else "a plain form of the published code, without --published"
    return Part(f"NestedMorph beside {name}", rows, {"published": options.published})


PARTS: dict[str, Callable[[Benchmark], Part]] = {
    "field": _field,
    "labels": _labels,
    "contrasts": _contrasts,
    "diffusion": _diffusion,
    "training": _training,
    "shift": _shift,
    "cost": _cost,
    "peer": _peer,
}


def _two_people(data: Path) -> tuple[LabelledScan, LabelledScan, dict[str, Path | None]]:
    """Images and FreeSurfer labels of two people, skull-stripped, 1 mm, and their files."""
    people, inputs = _people(data)
    chosen = {name: path for name, path in inputs.items() if name.split()[0] in ("voxelmorph", "mrtrix")}
    return people["voxelmorph"], people["mrtrix"], chosen


def _people(data: Path) -> tuple[dict[str, LabelledScan], dict[str, Path | None]]:
    """Images and FreeSurfer labels of the people in a folder, skull-stripped, 1 mm, and their files."""
    folder = data / "mri_t1_labels"
    scan = folder / "voxelmorph_test_scan" / "test_scan.npz"
    with np.load(scan, allow_pickle=False) as file:
        # the axes of the array point to the left, to the feet and to the front, 1 mm apart
        affine = np.array([[-1.0, 0, 0, 80], [0, 0, 1, -112], [0, -1, 0, 96], [0, 0, 0, 1]])
        image, labels = file["vol"].astype(np.float32), file["seg"].astype(np.int32)
    people = {"voxelmorph": LabelledScan(Volume(image, affine), Volume(labels, affine))}
    inputs: dict[str, Path | None] = {"voxelmorph": scan}
    for name, (image_name, labels_name) in _PEOPLE.items():
        files = folder / image_name, folder / labels_name
        if name == "mrtrix" or all(file.is_file() for file in files):
            people[name] = LabelledScan(*map(read_volume, files))
            inputs |= {f"{name} image": files[0], f"{name} labels": files[1]}
    return people, inputs


def _print_progress(text: str) -> None:
    print(f"  {text}", flush=True)
