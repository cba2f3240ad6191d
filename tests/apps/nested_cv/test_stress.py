"""The sentences of stress tests follow from the scores."""

import numpy as np
import pytest

from voxelwave.apps.nested_cv.refits import Refit
from voxelwave.apps.nested_cv.statistics import Scores
from voxelwave.apps.nested_cv.stress import StressTest, retested, stress_results

FOLDS = 5


def _scores(areas: list[float]) -> Scores:
    """Scores whose AUC in fold k is areas[k], up to 0.01: positives are above all negatives, between, or below."""
    label = np.tile([0] * 50 + [1] * 50, FOLDS)
    score = np.full(label.shape, 0.5)
    for fold, area in enumerate(areas):
        positives = 100 * fold + 50 + np.arange(50)
        above = round(50 * area)
        score[positives[:above]], score[positives[above:]] = 0.9, 0.1
    fold = np.repeat(np.arange(FOLDS), 100)
    shape = (1, len(label))
    return Scores(label, score[None], np.full(shape, 0.5), fold[None], np.arange(len(label)))


def _test(kind="removed", warning="", why_not="") -> StressTest:
    refit = Refit("quiet", "net", {"factory": "f", "arguments": {}})
    removed = "what lies above 40 Hz" if kind == "removed" else "the site"
    return StressTest("quiet", kind, "1 to 40 Hz", removed, "It leaves the rest.", refit, why_not, (), warning)


def _sentence(before: list[float], after: list[float], **more) -> tuple[str, list[str]]:
    test = _test(**more)
    found = stress_results("net", [test], _scores(before), {"quiet": _scores(after)}, 1 / (FOLDS - 1))
    return found["rows"][0]["sentence"], found["conclusion"]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (0.5, "All of the advantage over chance is gone without what lies above 40 Hz."),
        (0.4, "All of the advantage over chance is gone"),
        (0.7, "About half of the advantage over chance is gone without what lies above 40 Hz."),
        (0.6, "About three quarters of the advantage"),
        (0.78, "About a third of the advantage"),
        (0.9, "Almost nothing of the advantage over chance is gone without what lies above 40 Hz."),
        (0.98, "The score is higher without what lies above 40 Hz."),
    ],
)
def test_the_share_that_is_gone_is_said_in_words(after, words):
    steady = [0.0, 0.02, -0.02, 0.0, 0.0]
    sentence, _ = _sentence([0.9 + s for s in steady], [after + s for s in steady])
    assert sentence.startswith(words)


def test_a_loss_that_varies_over_folds_may_be_chance_and_a_wide_interval_is_bounded():
    varying, _ = _sentence([0.9] * 5, [0.4, 0.98, 0.9, 0.6, 0.98])
    assert varying == (
        "About a third of the advantage over chance is gone without what lies above 40 Hz, but this difference may be "
        "due to chance."
    )
    wide, conclusion = _sentence([0.9] * 5, [0.7, 0.98, 0.98, 0.86, 0.98])
    assert wide.startswith("Almost nothing of the advantage over chance is gone")
    assert "A loss of up to " in wide
    assert conclusion == ["No alteration took much of the advantage over chance away."]


def test_a_large_loss_is_named_in_the_conclusion_with_its_warning_even_if_it_may_be_chance():
    clear = "About three quarters of the advantage over chance is gone without what lies above 40 Hz."
    assert _sentence([0.9] * 5, [0.6] * 5, warning="It may be hum.")[1] == [f"{clear} It may be hum."]
    assert _sentence([0.9] * 5, [0.6] * 5)[1] == [clear]
    unsure = _sentence([0.9] * 5, [0.4, 0.98, 0.6, 0.6, 0.98], warning="It may be hum.")[1]
    assert unsure[0].endswith(", but this difference may be due to chance. It may be hum.")


def test_without_a_large_loss_the_largest_one_is_named_if_it_is_worth_a_line():
    nothing = "No alteration took much of the advantage over chance away."
    assert _sentence([0.9] * 5, [0.88] * 5)[1] == [nothing]
    assert _sentence([0.9] * 5, [0.8] * 5)[1] == [
        nothing,
        "The largest loss: about a quarter of the advantage over chance is gone without what lies above 40 Hz.",
    ]


def test_a_score_at_chance_has_nothing_to_lose():
    sentence, conclusion = _sentence([0.5, 0.6, 0.4, 0.5, 0.6], [0.3] * 5)
    assert sentence == "A loss cannot be measured."
    assert conclusion == ["The unaltered score is not clearly above chance: the tests cannot show what it rests on."]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ([0.8] * 5, "above chance: the site alone gives part of the score"),
        ([0.5, 0.6, 0.4, 0.5, 0.52], "no sign that the site alone gives the score"),
        ([0.3] * 5, "below chance, as can happen in a single shuffle"),
    ],
)
def test_shuffled_labels_show_what_the_strata_give(after, words):
    assert words in _sentence([0.9] * 5, after, kind="shuffled")[0]


def test_a_test_that_was_not_run_says_why():
    found = stress_results("net", [_test(why_not="nothing lies there")], _scores([0.9] * 5), {}, 0.25)
    assert found["rows"][0]["figures"] is None
    assert found["rows"][0]["sentence"] == "Not run: nothing lies there."
    failed = stress_results("net", [_test()], _scores([0.9] * 5), {}, 0.25)
    assert failed["rows"][0]["sentence"] == "Not run: a fit gave a probability that is not finite."


def test_differences_are_paired_by_fold_with_the_corrected_interval():
    before, after = [0.9, 0.8, 0.7, 0.9, 0.8], [0.8, 0.7, 0.6, 0.8, 0.7]
    found = retested(_scores(before), _scores(after), 0.25)
    assert found["difference"] == pytest.approx(-0.1)
    assert found["difference_interval"] == pytest.approx([-0.1, -0.1])  # each fold lost the same
    assert found["interval"][1] - found["interval"][0] > 0.1
    assert found["p"] < 0.01
    assert retested(_scores(before), _scores(before), 0.25)["p"] == 1.0
