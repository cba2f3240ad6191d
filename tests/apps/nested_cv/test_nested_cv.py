"""Nested cross-validation of toys: tested subjects affect no choice, and neither kills nor clusters change a figure."""

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from voxelwave.apps.nested_cv.fit import fit_cell
from voxelwave.apps.nested_cv.plan import NESTED, PUBLISHED, TEST_EPOCH, open_plan
from voxelwave.apps.nested_cv.search import run_plan
from voxelwave.apps.nested_cv.splits import LeakError
from voxelwave.runs.workers import InProcess, open_pool

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def toy_run(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))  # of jobs of Slurm
    import toy_run

    return toy_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        import toy_run

        folder = tmp_path_factory.mktemp("finished")
        results = toy_run.run(folder, toy_run.toy_plan(), InProcess())
    return folder, results


def figures(folder: Path) -> dict[str, bytes]:
    """The bytes of all figures of a run; the recorded times of the toys are constant."""
    files = {name: (folder / name).read_bytes() for name in ("predictions.csv", "results.json", "results.csv")}
    for path in sorted((folder / "cells").glob("*/*")):
        if path.name in ("predictions.csv", "curve.csv", "weights.txt"):
            files[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    return files


def run_here(folder, plan):
    open_plan(folder, plan)
    return run_plan(folder, plan, InProcess())


# --- kills and clusters


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_run_gives_the_same_figures_when_it_is_continued(finished, toy_run, tmp_path, jobs):
    folder, pause = tmp_path / "run", 0.05
    words = [sys.executable, str(HERE / "toy_run.py"), str(folder), str(jobs), str(pause)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    all_cells = len(list((finished[0] / "cells").iterdir()))
    while process.poll() is None and len(list(folder.glob("cells/[!.]*"))) < all_cells // 3:
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # the run was not finished
    assert psutil.wait_procs(workers, timeout=30)[1] == []  # no worker survives
    done = len(list(folder.glob("cells/[!.]*")))
    assert 0 < done < all_cells
    assert not (folder / "results.json").exists()
    toy_run.run(folder, toy_run.toy_plan(pause=pause), open_pool(folder, jobs=jobs))
    assert figures(folder) == figures(finished[0])
    assert list((folder / "cells").glob(".*")) == []


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_figures(finished, toy_run, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)  # the workers have another working directory, and the folder is relative
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        address = cluster.scheduler_address.replace("tcp://", "dask://")
        folder = Path("run")
        folder.mkdir()
        toy_run.run(folder, toy_run.toy_plan(), open_pool(folder, cluster=address))
    assert figures(folder) == figures(finished[0])


@pytest.mark.slow
def test_jobs_of_submitit_give_the_same_figures(toy_run, tmp_path):
    """Jobs of Slurm, run as processes on this machine; the run is smaller, since each fit is a process."""
    pytest.importorskip("submitit")
    small = {"outer": 2, "trials": 1, "protocol": NESTED, "published": ()}
    plan = toy_run.toy_plan({"good": toy_run.toy(effect=0.9)}, **small)
    toy_run.run(tmp_path / "here", plan, InProcess())
    folder = tmp_path / "jobs"
    open_plan(folder, plan)
    toy_run.run(folder, plan, open_pool(folder, cluster="slurm-local", jobs=3))
    assert figures(folder) == figures(tmp_path / "here")
    assert list((folder / "slurm").glob("*_result.pkl"))  # they were jobs


@pytest.fixture(scope="module")
def one_node():
    """A real Slurm of one node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE.parent))
        slurm = importlib.import_module("slurm")
        if slurm.missing():
            pytest.skip(slurm.missing())
        pytest.importorskip("submitit")
        with tempfile.TemporaryDirectory(prefix="slurm") as folder, slurm.OneNode(Path(folder)) as node:
            for name, value in node.environment.items():
                patch.setenv(name, value)
            yield node


@pytest.mark.slow
def test_a_real_slurm_gives_the_same_figures(one_node, toy_run, tmp_path):
    small = {"outer": 2, "trials": 1, "protocol": NESTED, "published": ()}
    plan = toy_run.toy_plan({"good": toy_run.toy(effect=0.9)}, **small)
    toy_run.run(tmp_path / "here", plan, InProcess())
    folder = tmp_path / "slurm"
    open_plan(folder, plan)
    toy_run.run(folder, plan, open_pool(folder, cluster="slurm", jobs=3))
    assert figures(folder) == figures(tmp_path / "here")
    jobs = {path.name.split("_")[0] for path in (folder / "slurm").glob("*_result.pkl")}
    assert jobs  # numbers that Slurm gave
    assert all(job.isdigit() for job in jobs)


# --- leaks


def test_labels_of_the_tested_subjects_choose_nothing(toy_run, tmp_path):
    """Inverted labels of one test part change only the published protocol.

    The choices and predictions of the nested run stay the same. Those of the published protocol change, so this test
    would detect a leak.
    """
    plan = toy_run.toy_plan(trials=4)
    tested = plan["splits"][1]["test"]
    inverted = [1 - label if i in tested else label for i, label in enumerate(toy_run.LABELS)]

    def estimator(labels):
        return {"good": toy_run.toy(labels=labels, shown=toy_run.LABELS, effect=0.9)}

    plans = []
    for labels in (toy_run.LABELS, inverted):
        other = json.loads(json.dumps(plan))
        other["models"], other["windows"] = estimator(labels), None
        other["cohort"]["labels"] = labels
        plans.append(other)
    before, after = (
        {o.protocol: o for o in run_here(tmp_path / str(k), p) if o.fold == 1} for k, p in enumerate(plans)
    )
    assert before[NESTED] == after[NESTED]  # settings, epochs, threshold, and the score of every trial
    cells = [tmp_path / str(k) / "cells" / before[NESTED].cell / "predictions.csv" for k in (0, 1)]
    assert cells[0].read_bytes() == cells[1].read_bytes()
    assert before[PUBLISHED].trials != after[PUBLISHED].trials
    assert (before[PUBLISHED].settings, before[PUBLISHED].epochs) != (
        after[PUBLISHED].settings,
        after[PUBLISHED].epochs,
    )
    assert before[TEST_EPOCH].epochs != after[TEST_EPOCH].epochs


def test_threshold_and_epochs_come_from_the_inner_folds(finished, toy_run):
    from voxelwave.apps.nested_cv.statistics import choose_threshold

    folder, results = finished
    model = next(m for m in results["models"] if (m["name"], m["protocol"]) == ("good", NESTED))
    for split, row in zip(toy_run.toy_plan()["splits"], model["per_fold"], strict=True):
        best = max(range(3), key=lambda t: (row["trials"][t]["score"], -t))
        assert row["settings"] == row["trials"][best]["settings"]
        inner = [folder / "cells" / f"good-r0-f{split['fold']}-nested-t{best}-i{i}" for i in (0, 1)]
        found = [json.loads((path / "result.json").read_text()) for path in inner]
        rows = [row for result in found for row in result["subjects"]]
        assert {r["subject"] for r in rows} == set(split["train"])
        labels = np.array([toy_run.LABELS[r["subject"]] for r in rows])
        assert row["threshold"] == choose_threshold(labels, np.array([r["probability"] for r in rows]))
        assert row["epochs"] == max(1, round(np.median([result["epochs"] for result in found])))


def test_a_cell_that_predicts_a_fitted_subject_is_refused(finished, tmp_path):
    cell = json.loads((finished[0] / "cells" / "good-r0-f0-nested-final" / "cell.json").read_text())
    cell["predict"] = [*cell["predict"], cell["train"][0]]
    with pytest.raises(ValueError, match="no subject may be both fitted and predicted"):
        fit_cell(cell, tmp_path)


def test_a_plan_with_a_leak_is_not_run(toy_run, tmp_path):
    plan = toy_run.toy_plan()
    plan["splits"][0]["train"].append(plan["splits"][0]["test"][0])
    with pytest.raises(LeakError):
        open_plan(tmp_path, plan)
    with pytest.raises(LeakError):
        run_plan(tmp_path, plan, InProcess())
    assert list(tmp_path.iterdir()) == []


# --- figures


def test_figures_follow_from_predictions_csv_by_scikit_learn(finished):
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    folder, results = finished
    with (folder / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for model in results["models"]:
        own = [r for r in rows if (r["model"], r["protocol"]) == (model["name"], model["protocol"])]
        reached = []
        for fold in sorted({r["fold"] for r in own}):
            subjects: dict[str, list] = {}
            for row in own:
                if row["fold"] == fold:
                    subjects.setdefault(row["subject"], []).append(row)
            label = [s[0]["label"] == "case" for s in subjects.values()]
            score = np.array([np.mean([float(r["probability"]) for r in s]) for s in subjects.values()])
            threshold = float(own[[r["fold"] for r in own].index(fold)]["threshold"])
            reached.append((balanced_accuracy_score(label, score >= threshold), roc_auc_score(label, score)))
        expected = np.mean(reached, axis=0)
        found = [model["metrics"][name]["mean"] for name in ("balanced_accuracy", "auc")]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    assert results["headline"]["mean"] == results["models"][0]["metrics"]["balanced_accuracy"]["mean"]


def test_a_planted_difference_is_found_and_the_optimism_table_goes_from_honest_to_leaky(finished):
    _, results = finished
    good, poor, published = results["models"]
    assert good["metrics"]["auc"]["mean"] > 0.75 > 0.65 > poor["metrics"]["auc"]["mean"]
    assert [(c["a"], c["b"], c["metric"]) for c in results["comparisons"]] == [
        ("good", "poor", "balanced_accuracy"),
        ("good", "poor", "auc"),
    ]
    rows = [(row["protocol"], row["unit"]) for row in results["optimism"]]
    subjects = [(protocol, "subject") for protocol in (NESTED, NESTED, TEST_EPOCH, PUBLISHED)]
    assert sorted(rows) == sorted([*subjects, (NESTED, "window"), ("random-windows", "window")])
    for fold in published["per_fold"]:  # it has the best settings on its test part
        best = max(fold["trials"], key=lambda trial: trial["score"])
        assert fold["settings"] == best["settings"]
        assert fold["threshold"] == 0.5


def test_nothing_to_find_gives_an_interval_around_a_half(toy_run, tmp_path):
    models = {"null": toy_run.toy(effect=0.0)}
    plan = toy_run.toy_plan(models, protocol=NESTED, published=(), repeats=2)
    results = toy_run.run(tmp_path, plan, InProcess())
    for metric in ("balanced_accuracy", "auc"):
        low, high = results["models"][0]["metrics"][metric]["interval_nb"]
        assert low <= 0.5 <= high
    assert results["models"][0]["permutation"]["p"] > 0.05


def test_diverged_trials_are_listed_and_never_chosen(toy_run, tmp_path):
    models = {"broken": toy_run.toy(kind="broken")}
    outcomes = run_here(tmp_path, toy_run.toy_plan(models, protocol=NESTED, published=(), trials=8))
    scores = [(t["settings"]["penalty"] > 1, t["score"] is None) for o in outcomes for t in o.trials]
    assert {(True, True), (False, False)} == set(scores)
    assert all(o.settings["penalty"] <= 1 for o in outcomes)


def test_a_model_without_settings_is_fitted_once_per_fold(toy_run, tmp_path):
    plan = toy_run.toy_plan({"plain": toy_run.toy(kind="plain")}, protocol=NESTED, published=())
    outcomes = run_here(tmp_path, plan)
    assert [(o.settings, len(o.trials)) for o in outcomes] == [({}, 1)] * 3
    assert len(list((tmp_path / "cells").iterdir())) == 3 * (2 + 1)


# --- the search


def test_all_trials_of_a_search_differ_as_long_as_there_are_other_settings(toy_run, tmp_path):
    """Three trials of six settings: the first runs of this project tried the same settings twice or three times."""
    few = {"few": toy_run.toy(kind="few")}
    plan = toy_run.toy_plan(few, protocol=NESTED, published=(), trials=3, outer=6, repeats=2)
    for outcome in run_here(tmp_path / "three", plan):
        tried = [trial["settings"]["penalty"] for trial in outcome.trials]
        assert len(set(tried)) == 3
    starts = {outcome.trials[0]["settings"]["penalty"] for outcome in run_here(tmp_path / "three", plan)}
    assert len(starts) > 2  # folds start from different settings
    all_of_them = run_here(tmp_path / "all", toy_run.toy_plan(few, protocol=NESTED, published=(), trials=8, outer=2))
    for outcome in all_of_them:
        assert len({trial["settings"]["penalty"] for trial in outcome.trials}) == 6
        assert len(outcome.trials) == 8


def test_a_run_of_an_earlier_version_continues_with_its_search(toy_run, tmp_path):
    plan = toy_run.toy_plan({"good": toy_run.toy()}, protocol=NESTED, published=(), trials=4)
    old = json.loads(json.dumps(plan))
    del old["design"]["startup"]
    open_plan(tmp_path, old)
    before = run_plan(tmp_path, old, InProcess())
    continued = open_plan(tmp_path, plan)
    assert "startup" not in continued["design"]
    assert run_plan(tmp_path, continued, InProcess()) == before
    with pytest.raises(ValueError, match="holds a cell with other content"):
        run_plan(tmp_path, plan, InProcess())


# --- the folder of a run


def test_a_folder_with_another_plan_is_refused_and_the_difference_is_named(finished, toy_run):
    with pytest.raises(ValueError, match=r"with another plan \(trials was 3, now 4"):
        open_plan(finished[0], toy_run.toy_plan(trials=4))
    with pytest.raises(ValueError, match=r"\(models\.\w+\.arguments\.pause was .*, now 1\.0"):
        open_plan(finished[0], toy_run.toy_plan(pause=1.0))
    other = {**toy_run.toy_plan(), "data": "0" * 64}
    with pytest.raises(ValueError, match=r"\(the recordings differ\); .* with the version that began it"):
        open_plan(finished[0], other)


def test_a_folder_with_other_files_is_refused(toy_run, tmp_path):
    (tmp_path / "thesis.docx").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no plan\.json"):
        open_plan(tmp_path, toy_run.toy_plan())


def test_a_second_run_in_the_same_folder_is_refused(toy_run, tmp_path):
    from filelock import FileLock

    plan = toy_run.toy_plan()
    open_plan(tmp_path, plan)
    with FileLock(tmp_path / ".lock"), pytest.raises(OSError, match="another run works in"):
        run_plan(tmp_path, plan, InProcess())


def test_impossible_designs_are_refused(toy_run):
    with pytest.raises(ValueError, match="trials must be at least 1"):
        toy_run.toy_plan(trials=0)
    with pytest.raises(ValueError, match="published must be among the models"):
        toy_run.toy_plan(published=("nobody",))
