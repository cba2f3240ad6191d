"""The report of a run that is written by hand: it has every section, and a missing key is an error."""

import copy
import csv
import dataclasses
import html
import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import get_type_hints

import pytest

from voxelwave.apps.nested_cv.plan import Design, WindowUnits
from voxelwave.apps.nested_cv.records import Explanation, PlannedCohort, PlannedDesign, PlannedWindows
from voxelwave.apps.nested_cv.report import _windowing, read_results, write_report
from voxelwave.apps.nested_cv.splits import Cohort
from voxelwave.apps.nested_cv.statistics import METRICS
from voxelwave.apps.nested_cv.tripod import tripod_items
from voxelwave.runs.json_types import check_record

from ..html import html_faults

SUBJECTS = [f"s{i}" for i in range(1, 9)]
LABELS = ["control", "case"] * 4
SECTIONS = [
    *(
        "done",
        "subjects",
        "models",
        "main",
        "comparisons",
        "optimism",
        "stress",
        "stability",
        "simpler",
        "explanation",
        "audit",
    ),
    "limits",
    *("folds", "others", "metrics", "tripod", "each", "again"),
]
WINDOWS = {"seconds": 2.0, "overlap": 0.5, "sfreq": 64.0, "band": [1, 40], "reference": "average", "scaling": "fold"}


def _metric(mean: float) -> dict:
    return {
        "mean": mean,
        "sd_folds": 0.0625,
        "interval_nb": [mean - 0.125, mean + 0.125],
        "pooled": mean,
        "interval_bootstrap": [mean - 0.1, mean + 0.1],
    }


def _fold(fold: int, mean: float, curve: list[dict]) -> dict:
    settings = {"rate": 0.25 * (fold + 1)}
    trials = [{"settings": {"rate": 9.0}, "score": None, "epochs": [1]}]
    trials.append({"settings": settings, "score": 0.8125, "epochs": [2, 3]})
    return {
        "repeat": 0,
        "fold": fold,
        **dict.fromkeys(METRICS, mean),
        "threshold": 0.375 + 0.25 * fold,
        "settings": settings,
        "epochs": 2,
        "curve": curve,
        "trials": trials,
    }


def _stability() -> dict:
    return {
        "spread": {"auc": {"per_partition": [0.75, 0.8125], "sd_partitions": 0.0442, "sd_subjects": 0.0625}},
        "calibration": {"slope": 0.5, "slope_interval": [0.25, 0.75], "intercept": None, "intercept_interval": None},
        "decision_curve": [{"threshold": t, "model": 0.25, "everyone": 0.5 - t} for t in (0.25, 0.5)],
    }


def _learning() -> dict:
    point = {"interval": [0.5, 0.75], "per_fold": [0.625, 0.625]}
    points = [{"share": s, "subjects": 4 * s, "auc": 0.5 + s / 8, **point} for s in (0.25, 0.5, 0.75, 1.0)]
    more = [{"subjects": 4.0 * k, "auc": 0.75, "interval": [0.5, 1.0]} for k in (1.5, 2, 4)]
    return {"model": "net", "points": points, "limit": 0.8, "loss": 0.2, "more": more, "text": "More would help."}


def _model(name: str, title: str, mean: float, protocol: str = "nested", curve: list[dict] | None = None) -> dict:
    return {
        "name": name,
        "protocol": protocol,
        "metrics": {metric: _metric(mean) for metric in METRICS},
        "secondary": {"single_windows": {"unit": "window", **dict.fromkeys(METRICS, mean)}},
        "per_fold": [_fold(fold, mean, curve or []) for fold in (0, 1)],
        "roc": {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0], "low": [0.0, 0.5], "high": [0.5, 1.0]},
        "calibration": [{"predicted": 0.5, "observed": 0.5, "low": 0.25, "high": 0.75, "n": 8.0}],
        "confusion": [[3.0, 1.0], [1.0, 3.0]],
        "permutation": {"p": 0.0005, "n": 99, "null_mean": 0.5, "null_interval": [0.3, 0.7], "how": "by shuffling"},
        "stability": _stability(),
        "title": title,
        "description": f"what {title} is",
    }


def _stress() -> dict:
    figures = {"auc": 0.625, "interval": [0.5, 0.75], "balanced_accuracy": 0.5625, "difference": -0.125}
    figures |= {"difference_interval": [-0.25, 0.0], "p": 0.03125, "per_fold": [0.625, 0.625]}
    row = {"name": "quiet", "kind": "removed", "title": "the quiet part", "leaves": "It leaves the rest."}
    skipped = {**row, "name": "loud", "title": "the loud part", "figures": None, "sentence": "Not run: no noise."}
    return {
        "model": "net",
        "auc": 0.75,
        "interval": [0.625, 0.875],
        "rows": [{**row, "figures": figures, "sentence": "About half is gone."}, skipped],
        "conclusion": ["Half of it was noise."],
    }


def _results() -> dict:
    curve = [{"epoch": 1.0, "train_loss": 0.7}, {"epoch": 2.0, "train_loss": 0.5}]
    models = [_model("net", "The Net", 0.75, curve=curve), _model("length", "Length", 0.6875)]
    models.append(_model("net", "The Net", 0.9375, "published"))
    group = {"subjects": 4, "windows": 12, "seconds_median": 6.0, "seconds_range": [5.0, 7.0]}
    folds = [
        {
            "repeat": 0,
            "fold": fold,
            "train": SUBJECTS[4 * (1 - fold) :][:4],
            "test": SUBJECTS[4 * fold :][:4],
            "test_per_class": {"control": 2, "case": 2},
        }
        for fold in (0, 1)
    ]
    result = {
        "title": "A run <by hand>",
        "created": "2026-01-02",
        "command": "voxelwave eeg nested-cv study",
        "description": ["Two channels."],
        "seconds": 61.0,
        "hardware": "a small machine",
        "versions": {"voxelwave": "0.2.0"},
        "options": {"trials": 2, "objective": "auc", "protocol": "both", "windows": dict(WINDOWS)},
        "unit": "subject",
        "classes": ["control", "case"],
        "flow": {
            "listed": 9,
            "read": 9,
            "excluded": [{"subject": "s9", "reason": "too short"}],
            "analysed": 8,
            "windows": 24,
            "per_class": {"control": dict(group), "case": dict(group)},
        },
        "splits": {"outer": 2, "inner": 2, "repeats": 1, "seeds": [11], "folds": folds},
        "headline": {
            "model": "net",
            "protocol": "nested",
            "metric": "balanced_accuracy",
            "mean": 0.75,
            "interval": [0.625, 0.875],
            "method": "by hand",
            "n_folds": 2,
        },
        "models": models,
        "comparisons": [
            {
                "a": "net",
                "b": "length",
                "metric": "auc",
                "difference": 0.0625,
                "interval": [-0.1, 0.2],
                "p": 0.25,
                "how": "by swaps",
                "p_holm": 0.5,
            }
        ],
        "optimism": [
            {
                "protocol": protocol,
                "model": "net",
                "what": "chosen somewhere",
                "balanced_accuracy": 0.75,
                "auc": 0.75,
                "interval": [0.6, 0.9],
                "unit": "subject",
            }
            for protocol in ("nested", "published", "random-windows")
        ],
        "subjects": [
            {
                "subject": name,
                "label": label,
                "windows": 3,
                "seconds": 6.0 + i,
                "score": {"net": 0.5, "length": 0.25},
                "extra": {"age": str(20 + i)} if i else {},
            }
            for i, (name, label) in enumerate(zip(SUBJECTS, LABELS, strict=True))
        ],
        "audit": [
            {"check": f"check {outcome}", "outcome": outcome, "detail": "looked"}
            for outcome in ("ok", "warning", "fail", "not checked")
        ],
        "caveats": ["Sites differ."],
        "limits": ["One study."],
        "tripod": [],
        "sample_size": {
            **{"subjects": 8, "positives": 4, "auc": 0.75, "standard_error": 0.1875, "half_width": 0.3675},
            **{"wanted": 0.05, "needed": 300, "text": "Eight are few."},
        },
        "stress": _stress(),
        "learning": _learning(),
    }
    result["tripod"] = tripod_items(result)
    return result


def _explanation() -> dict:
    return {
        "model": "net",
        "networks": ["repeat 1, fold 1", "repeat 1, fold 2"],
        "subjects": 8,
        "windows": 24,
        "classes": ["control", "case"],
        "bands": [
            {"band": "alpha", "low": 8.0, "high": 13.0, "importance": 0.75, "sd": 0.125, "hiding_costs": 0.5},
            {"band": "other", "low": None, "high": None, "importance": 0.25, "sd": None, "hiding_costs": None},
        ],
        "channels": [{"channel": "Pz", "importance": 1.0, "sd": 0.0, "hiding_costs": 0.5}],
        "completeness_error": 0.0125,
        "silhouette": {"class": 0.25, "subject": None},
        "notes": ["A note."],
        "images": {"topomap": "topomap.png", "bands": "bands.png"},
        "captions": {"topomap": "A map.", "bands": "By band."},
    }


def _write(folder: Path, results: dict, explanation: dict | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    if explanation is not None:
        (folder / "explain").mkdir(exist_ok=True)
        (folder / "explain" / "explanation.json").write_text(json.dumps(explanation))
        (folder / "explain" / "topomap.png").write_bytes(b"\x89PNG")
    return folder


def _write_predictions(folder: Path) -> None:
    """One window per subject; the first subject, a control, is classified as a case."""
    with (folder / "predictions.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        names = ("protocol", "model", "repeat", "fold", "subject", "label", "window", "probability", "threshold")
        writer.writerow(names)
        for i, (name, label) in enumerate(zip(SUBJECTS, LABELS, strict=True)):
            probability = 0.9 if label == "case" or i == 0 else 0.1
            writer.writerow(("nested", "net", 0, i // 4, name, label, 0, probability, 0.5))


class _Page(HTMLParser):
    """The sections, links and open tags of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.sections: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "section" and "id" in given:
            self.sections.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def _report(folder: Path) -> str:
    return write_report(folder).read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = _write(tmp_path_factory.mktemp("report") / "run", _results(), _explanation())
    _write_predictions(folder)
    cell = folder / "cells" / "net-r0-f0-nested-t1-i0"  # the second trial was chosen
    cell.mkdir(parents=True)
    (cell / "curve.csv").write_text("epoch,train_loss,validation_loss\n1,0.7,0.8\n2,0.5,0.6\n")
    return _report(folder)


def _section(page: str, name: str) -> str:
    """The text of a section without tags."""
    text = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL).group()
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text)))


def test_the_page_is_valid_html(page, tmp_path):
    (tmp_path / "report.html").write_text(page)
    assert html_faults(tmp_path / "report.html") == []


def test_every_section_is_there_and_every_tag_is_closed(page):
    parsed = _Page(page)
    assert parsed.sections == SECTIONS
    assert parsed.links == ["#stress", *(f"#{name}" for name in SECTIONS)]  # the headline leads to the stress tests
    assert parsed.open == []
    assert "A run &lt;by hand&gt;" in page


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("done", ["Two channels.", "windows of 2 s, each sharing 50 % with the next", "filtered to 1 to 40 Hz"]),
        ("done", ["Reference: average.", "by 2 inner folds", "Seeds: 11."]),
        (
            "subjects",
            ["9 subjects listed", "1: too short", "8 subjects analysed, 24 windows"],
        ),
        ("models", ["The Net what The Net is 0.750 0.625 to 0.875", "Length"]),
        ("main", ["0.375 to 0.625 over folds", "3 75 %", "p < 0.001 (99 shuffles; by shuffling)", "observed 0.750"]),
        ("comparisons", ["The Net Length AUC 0.062 −0.100 to 0.200 0.250 0.500", "By swaps."]),
        ("optimism", ["published selected on the test fold", "random-windows the same subjects on both sides"]),
        ("main", ["Calibration slope 0.50 (0.25 to 0.75), ideally 1; intercept –", "Decision curve"]),
        ("stability", ["Eight are few.", "The Net AUC 0.750, 0.812 0.044 0.062", "More would help. A continuation"]),
        ("stress", ["The Net was fitted", "0.750 (0.625 to 0.875)", "Half of it was noise.", "Not run: no noise."]),
        ("stress", ["The quiet part 0.625 0.500 to 0.750 −0.125 −0.250 to 0.000", "About half is gone. It leaves the"]),
        ("simpler", ["Sites differ.", "Not below the interval of The Net (0.750): Length 0.688", "AUC of 0.625"]),
        ("explanation", ["2 networks", "8 in all, 24 windows", "1.2 %", "alpha 8–13 Hz", "0.750 ± 0.125", "A map."]),
        ("explanation", ["The picture bands is missing from the folder of the run."]),
        ("audit", ["check ok ✓ ok", "check warning ! warning", "check fail ✗ fail", "check not checked not checked"]),
        ("limits", ["One study."]),
        ("folds", ["inner AUC rate", "1 1 0.750 0.750 0.375 2 0.812 0.25", "One pair of lines per inner fold"]),
        ("others", ["Length Permutation test: p < 0.001 (99 shuffles), observed 0.688"]),
        ("metrics", ["balanced accuracy 0.750 0.062 0.625 to 0.875 0.750 0.650 to 0.850", "single windows window"]),
        ("tripod", ["23a Performance with intervals net: balanced accuracy 0.750 (0.625 to 0.875)."]),
        ("each", ["s1 control 3 6.0 case no 0.500 0.250 –", "s2 case 3 7.0 case yes 0.500 0.250 21"]),
        ("again", ["voxelwave eeg nested-cv study", "1 min 1 s", "voxelwave 0.2.0", "trials 2"]),
    ],
)
def test_a_section_holds_its_figures(name, texts, page):
    section = _section(page, name)
    assert [text for text in texts if text not in section] == []


def test_without_predictions_cells_and_explanation_the_rest_is_there(tmp_path):
    page = _report(_write(tmp_path, _results()))
    assert _Page(page).sections == [name for name in SECTIONS if name != "explanation"]
    assert "s1 control 3 6.0 0.500 0.250 –" in _section(page, "each")
    assert "One line per outer fold" in _section(page, "folds")


def test_results_of_an_earlier_version_lack_the_later_sections(tmp_path):
    results = _results()
    for key in ("sample_size", "stress", "learning"):
        del results[key]
    for model in results["models"]:
        del model["stability"]
    page = _report(_write(tmp_path, results))
    gone = ("explanation", "stress", "stability")
    assert _Page(page).sections == [name for name in SECTIONS if name not in gone]
    assert "Decision curve" not in page


def test_a_run_of_the_published_protocol_alone_is_marked_and_claims_no_inner_folds(tmp_path):
    results = _results()
    results["models"] = results["models"][2:]
    results["headline"]["protocol"] = results["options"]["protocol"] = "published"
    results["comparisons"], results["optimism"] = [], results["optimism"][1:2]
    for subject in results["subjects"]:
        subject["score"] = {}
    page = _report(_write(tmp_path, results))
    assert "This figure was selected on the test fold" in page
    assert "The run has no nested cross-validation." in _section(page, "models")
    assert "inner folds" not in _section(page, "done") + _section(page, "main")
    assert not {"comparisons", "folds", "others", "metrics"} & set(_Page(page).sections)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ([0.4, 0.9], "includes 0.5"),
        ([0.5, 0.9], "includes 0.5"),
        ([0.6, 0.9], "lies above"),
        ([0.1, 0.4], "lies below"),
    ],
)
def test_the_headline_is_read_by_its_interval(interval, text, tmp_path):
    results = _results()
    results["headline"]["interval"] = interval
    page = _report(_write(tmp_path, results))
    assert [words for words in ("includes 0.5", "lies above", "lies below") if words in page] == [text]


def test_an_interval_without_width_is_shown_as_not_estimable(tmp_path):
    results = _results()
    results["headline"] |= {"mean": 0.5, "interval": [0.5, 0.5]}
    page = _report(_write(tmp_path, results))
    assert "0.500 to 0.500" not in page
    assert "0.500 <small>(not estimable)</small>" in page
    answers = {item["number"]: item["text"] for item in tripod_items(results)}
    assert answers["23a"] == "net: balanced accuracy 0.500 (not estimable)."
    assert not [words for words in ("includes 0.5", "lies above", "lies below") if words in page]


@pytest.mark.parametrize(
    ("probability", "decision"), [(0.61, "case"), (0.59, "uncertain"), (0.41, "uncertain"), (0.39, "control")]
)
def test_a_score_near_the_threshold_is_no_decision(probability, decision, tmp_path):
    folder = _write(tmp_path, _results())
    _write_predictions(folder)
    table = folder / "predictions.csv"
    table.write_text(table.read_text().replace("s1,control,0,0.9,", f"s1,control,0,{probability},"))
    assert f"s1 control 3 6.0 {decision} " in _section(_report(folder), "each")


def test_the_page_counts_what_is_left_undecided(tmp_path):
    folder = _write(tmp_path, _results())
    _write_predictions(folder)
    table = folder / "predictions.csv"
    table.write_text(table.read_text().replace("s3,control,0,0.1,", "s3,control,0,0.45,"))
    page = html.unescape(_report(folder))
    assert "1 of 8 subjects are left undecided; of the other 7, 6 are classified correctly." in page
    assert "can a model tell case from control for a subject whom it has not seen?" in page


# --- in a browser


@pytest.fixture
def browser(monkeypatch):
    """The module of the headless browser; a test that needs more skips."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    found = importlib.import_module("browser")
    if found.PROGRAM is None:
        pytest.skip("needs Chromium")
    return found


@pytest.mark.slow
def test_the_headline_and_the_contents_fit_on_the_first_screen(page, browser, tmp_path):
    (tmp_path / "report.html").write_text(page)
    with browser.Browser() as shown:
        shown.open(tmp_path / "report.html")
        assert shown.run("document.querySelector('nav').getBoundingClientRect().bottom <= innerHeight")


@pytest.mark.slow
def test_a_narrow_screen_needs_no_scrolling_to_the_side(page, browser, tmp_path):
    (tmp_path / "report.html").write_text(page.replace("net", "a network with a long name"))
    with browser.Browser() as shown:
        shown.call("Emulation.setDeviceMetricsOverride", width=400, height=900, deviceScaleFactor=1, mobile=False)
        shown.open(tmp_path / "report.html")
        assert shown.run("document.documentElement.scrollWidth") <= 400


@pytest.mark.slow
def test_axe_finds_no_barrier_of_level_a_or_aa_in_light_and_dark(page, browser, tmp_path):
    if browser.AXE is None:
        pytest.skip("needs axe-core: pip install axe-core-python")
    (tmp_path / "report.html").write_text(page)
    with browser.Browser() as shown:
        for scheme in ("light", "dark"):
            shown.open(tmp_path / "report.html")
            assert shown.barriers(scheme) == []
        (tmp_path / "bad.html").write_text("<p style='color: #ccc'>pale</p>")  # so that the line above can fail
        shown.open(tmp_path / "bad.html")
        assert any(text.startswith("color-contrast") for text in shown.barriers())


# --- strictness


def _keys(content: object, path: tuple = ()) -> list[tuple]:
    """The place of every key that a type requires; the first entry of a list represents all entries."""
    if isinstance(content, list):
        return _keys(content[0], (*path, 0)) if content else []
    if not isinstance(content, dict):
        return []
    return [place for key in content for place in ((*path, key), *_keys(content[key], (*path, key)))]


def _renamed(content: dict, place: tuple) -> dict:
    changed = copy.deepcopy(content)
    part = changed
    for step in place[:-1]:
        part = part[step]
    part[f"{place[-1]}_"] = part.pop(place[-1])
    return changed


# dictionaries whose keys are names of classes, models, metrics, settings, versions, options and pictures
_FREE = ("versions", "options", "per_class", "test_per_class", "metrics", "secondary", "settings", "score", "extra")
_FREE += ("spread", "curve", "images", "captions", "silhouette")


def _required(content: dict) -> list[tuple]:
    return [
        place
        for place in _keys(content)
        if place not in [("stress",), ("learning",), ("sample_size",)]  # a run without such tests, or an old one
        and place[-1] != "stability"
        and "figures" not in place[:-1]  # either figures or null
        and not (len(place) > 1 and place[-2] in _FREE)
        and not (len(place) > 2 and place[-3] in ("curve", "options"))
    ]


def test_a_renamed_key_of_the_results_is_refused_by_name(tmp_path):
    for place in _required(_results()):
        folder = _write(tmp_path, _renamed(_results(), place))
        with pytest.raises(ValueError, match=re.escape(f"results.json: {'.'.join(map(str, place))} is missing")):
            read_results(folder)


def test_a_renamed_key_of_the_explanation_is_refused_by_name(tmp_path):
    for place in _required(_explanation()):
        with pytest.raises(ValueError, match=re.escape(f"explanation.json: {'.'.join(map(str, place))} is missing")):
            check_record(_renamed(_explanation(), place), Explanation, "explanation.json")
    folder = _write(tmp_path, _results(), _renamed(_explanation(), place))
    with pytest.raises(ValueError, match=r"explanation\.json: .* is missing"):
        write_report(folder)


@pytest.mark.parametrize("name", list(WINDOWS))
def test_a_renamed_window_option_is_an_error(name):
    _windowing(WINDOWS)
    with pytest.raises(KeyError, match=name):
        _windowing(_renamed(WINDOWS, (name,)))


@pytest.mark.parametrize(
    ("place", "value", "complaint"),
    [
        (("seconds",), "long", "seconds must be float, got str 'long'"),
        (("classes",), {}, "classes must be list, got dict"),
        (("models", 0, "roc"), None, "models.0.roc must be an object, got NoneType"),
        (("models", 0, "per_fold", 1, "epochs"), True, "models.0.per_fold.1.epochs must be int, got bool"),
        (("models", 0, "per_fold", 0, "trials", 0, "score"), "", "trials.0.score must be float or NoneType, got str"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(place, value, complaint, tmp_path):
    results = _results()
    part = results
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    with pytest.raises(ValueError, match=re.escape(complaint)):
        read_results(_write(tmp_path, results))


def test_a_key_of_a_later_version_is_accepted(tmp_path):
    assert read_results(_write(tmp_path, _results() | {"later": 1}))["title"] == "A run <by hand>"


@pytest.mark.parametrize(
    ("record", "source"), [(PlannedDesign, Design), (PlannedCohort, Cohort), (PlannedWindows, WindowUnits)]
)
def test_the_types_of_the_plan_have_the_fields_of_their_dataclasses(record, source):
    assert list(get_type_hints(record)) == [field.name for field in dataclasses.fields(source)]


def test_the_explanation_by_hand_has_all_keys_of_its_type():
    assert set(_explanation()) == Explanation.__required_keys__
    check_record(_explanation(), Explanation, "explanation.json")
