"""The `voxelwave` command: a table of verbs, each with a class of options and a function that is imported when needed.

`--help` and wrong usage load only the options; a missing input is reported before torch or another heavy package loads.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 some cases failed, 4 refused by a safety check, 130 interrupted (Ctrl-C),
143 terminated by SIGTERM.
"""

import importlib
import os
import sys
import traceback
import warnings
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any, NamedTuple, TextIO

from ..runs.exit import DONE, ERROR, INTERRUPTED, USAGE, UsageError
from ..runs.words import one_line
from .arguments import parse_arguments


class Verb(NamedTuple):
    """One verb: "module:class" of its options and "module:function" of its work, below this folder; and a summary."""

    options: str
    work: str
    summary: str


COMMANDS: dict[str, dict[str, Verb]] = {
    "registration": {
        "register": Verb(
            "registration.options:Register", "registration.register:register", "align one scan to another"
        ),
        "apply": Verb(
            "registration.options:Apply",
            "registration.apply:apply",
            "apply a saved transform to an image or a label map",
        ),
        "train": Verb("registration.options:Train", "registration.train:train", "train NestedMorph on pairs of scans"),
        "evaluate": Verb(
            "registration.options:Evaluate",
            "registration.evaluate:evaluate",
            "register a list of pairs and measure the accuracy",
        ),
        "benchmark": Verb(
            "registration.options:Benchmark",
            "registration.benchmark:benchmark",
            "measure accuracy, time and memory, compared with ANTs SyN",
        ),
    },
    "restoration": {
        "restore": Verb(
            "restoration.options:Restore",
            "restoration.restore:restore",
            "denoise, super-resolve, deblur: images, volumes, DICOM series",
        ),
        "train": Verb(
            "restoration.options:Train",
            "restoration.train:train",
            "train a network on a folder of images or on real pairs",
        ),
        "evaluate": Verb(
            "restoration.options:Evaluate",
            "restoration.evaluate:evaluate",
            "measure PSNR and SSIM, compared with classical methods",
        ),
        "export": Verb(
            "restoration.options:Export", "restoration.export:export", "write weights from a training checkpoint"
        ),
        "extract": Verb(
            "restoration.options:Extract", "restoration.extract:extract", "write one size of weights with several sizes"
        ),
        "benchmark": Verb(
            "restoration.options:Benchmark",
            "restoration.benchmark:benchmark",
            "measure time, memory and PSNR, compared with simpler methods",
        ),
        "images": Verb(
            "restoration.options:Images", "restoration.images:images", "gather openly licensed images for training"
        ),
    },
    "eeg": {
        "train": Verb("eeg.options:Train", "eeg.train:train", "train one network on the recordings of a study"),
        "diagnose": Verb(
            "eeg.options:Diagnose", "eeg.diagnose:diagnose", "estimate the probability of the diagnosed class"
        ),
        "explain": Verb(
            "eeg.nested_options:Explain", "eeg.explain:explain", "show which channels and bands a network relies on"
        ),
        "nested-cv": Verb(
            "eeg.nested_options:NestedCV",
            "eeg.nested_cv:nested_cv",
            "evaluate networks and simple models by nested cross-validation, with a report",
        ),
        "audit": Verb(
            "eeg.options:Audit", "eeg.audit:audit", "check a study, and a split of it, for leakage and confounds"
        ),
        "benchmark": Verb(
            "eeg.options:Benchmark",
            "eeg.benchmark:benchmark",
            "measure the training speed of ADHDeepNet and other networks",
        ),
        "planted": Verb(
            "eeg.nested_options:Planted",
            "eeg.planted:planted",
            "test the pipeline on synthetic subjects with a known difference",
        ),
    },
    "scanpath": {
        "train": Verb("scanpath.options:Train", "scanpath.train:train", "train OAT on scanpaths"),
        "predict": Verb(
            "scanpath.options:Predict",
            "scanpath.predict:predict",
            "predict the order in which people look at the objects of a scene",
        ),
        "evaluate": Verb(
            "scanpath.options:Evaluate",
            "scanpath.evaluate:evaluate",
            "compare a network with simpler models and with people",
        ),
        "cross-validate": Verb(
            "scanpath.options:CrossValidate",
            "scanpath.cross_validate:cross_validate",
            "evaluate by cross-validation over layouts, people or targets",
        ),
        "benchmark": Verb(
            "scanpath.options:Benchmark",
            "scanpath.benchmark:benchmark",
            "measure the speed of decoding and how well a known observer is learnt",
        ),
    },
    "attention": {
        "explain": Verb(
            "attention.options:Explain",
            "attention.explain:explain",
            "show what the heads of a trained network do, on scenes or recordings",
        ),
        "tune": Verb(
            "attention.options:Tune",
            "attention.tune:tune_network",
            "try changes of attention that need no training, with one report on held-out layouts",
        ),
        "tasks": Verb(
            "attention.options:Tasks",
            "attention.tasks:tasks",
            "train small models on known tasks and show what their attention learns",
        ),
    },
    "batch": {
        "page": Verb(
            "batch.options:Page", "batch.page:page", "write the page of a folder of results again, from its manifest"
        ),
        "benchmark": Verb(
            "bench.options:BatchBenchmark",
            "bench.batch:benchmark",
            "measure the cost of a run over many series, and its recovery from kills",
        ),
    },
    "bench": {
        "attention": Verb(
            "bench.options:Attention", "bench.attention:attention", "measure costs and scores of attention mechanisms"
        ),
        "kernels": Verb(
            "bench.options:Kernels",
            "bench.kernels:kernels",
            "measure speed and accuracy of the selective scan, compared with other implementations",
        ),
    },
}
TOP_LEVEL: dict[str, Verb] = {
    "demo": Verb(
        "demo.options:Demo",
        "demo.demo:demo",
        "align two real brain scans, denoise a slice and predict a scanpath, all from included data",
    ),
    "weights": Verb(
        "weights.options:Weights", "weights.weights:weights", "list the weights that --weights finds by name"
    ),
    "report": Verb(
        "report_options:Report", "make_report:report", "write the report of a finished run again, as one HTML file"
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; this is also the `voxelwave` script."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run_safely(argv)


def _run_safely(argv: list[str]) -> int:
    """Run one command; an error becomes one line on standard error and an exit code."""
    try:
        return _dispatch(argv)
    except UsageError as error:
        print(f"voxelwave: usage: {one_line(error)}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("voxelwave: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head or less, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (ValueError, OSError, ImportError, MemoryError) as error:
        if os.environ.get("VOXELWAVE_DEBUG"):
            traceback.print_exc()
        print(f"voxelwave: error: {one_line(error)}", file=sys.stderr)
        return ERROR


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return DONE if argv else USAGE
    if argv[0] == "--version":
        print(f"voxelwave {version('voxelwave')}")
        return DONE
    field, *rest = argv
    if field in TOP_LEVEL:
        return _run(f"voxelwave {field}", TOP_LEVEL[field], rest)
    if field not in COMMANDS:
        raise UsageError(f"{_no_such(field, [*COMMANDS, *TOP_LEVEL])}; see voxelwave --help")
    verbs = COMMANDS[field]
    if not rest or rest[0] in ("-h", "--help"):
        print(_verbs(field))
        return DONE if rest else USAGE
    if rest[0] not in verbs:
        raise UsageError(f"{_no_such(rest[0], list(verbs))} after {field}")
    return _run(f"voxelwave {field} {rest[0]}", verbs[rest[0]], rest[1:])


def _no_such(word: str, known: list[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"expected one of {', '.join(known)}, got {word!r}" + (f" (did you mean {near[0]}?)" if near else "")


def _run(prog: str, verb: Verb, argv: list[str]) -> int:
    options_class = _load(verb.options)
    options = options_class(**parse_arguments(options_class, argv, prog=prog))
    options.check()
    code = _load(verb.work)(options)
    return DONE if code is None else int(code)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


def _overview() -> str:
    lines = ["usage: voxelwave FIELD VERB ...   (voxelwave FIELD VERB --help lists the options)", ""]
    for field, verbs in COMMANDS.items():
        lines.append(field)
        lines += [f"  {verb:<16}{text}" for verb, (_, _, text) in verbs.items()]
    lines += ["", *(f"{name:<18}{text}" for name, (_, _, text) in TOP_LEVEL.items())]
    return "\n".join(lines)


def _verbs(field: str) -> str:
    return "\n".join(
        [f"usage: voxelwave {field} VERB ...", "", *(f"  {v:<16}{text}" for v, (_, _, text) in COMMANDS[field].items())]
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show our own warnings as notes, and hide the warnings of libraries."""
    if issubclass(category, UserWarning) and "voxelwave" in category.__module__:
        print(f"voxelwave: note: {one_line(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
