"""Options of `voxelwave eeg nested-cv`, `test`, `planted` and `explain`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...runs.exit import UsageError
from ..options import PLAN, OutputOptions, ThreadOptions, WorkerOptions, at_least, must_exist
from .options import GuardOptions, StudyOptions

FOLDER = "explain"  # of the explanation, in the folder of a nested run
MOST_WINDOWS, STEPS = 300, 24  # of an explanation: windows for each network, steps of the integrated gradients


@dataclass(frozen=True, kw_only=True)
class NestedCV(StudyOptions, GuardOptions, WorkerOptions):
    """Evaluate models on the subjects of STUDY by nested cross-validation, and write a report.

    Each subject is in the test part of one outer fold; classes (and sites, if the table has a column "site") have equal
    shares in all folds. Settings, number of epochs and threshold are chosen by inner folds within the training part;
    the test part is predicted once, at the end. The score of a subject is the mean probability of its windows. OUTPUT
    receives report.html, results.json, results.csv, predictions.csv, explain/, plan.json and cells/ with every single
    fit. If the audit of study and folds fails, nothing is trained and the exit code is 4. After a kill, the same
    command continues the run and gives the same figures.

    Args:
        study: subjects.tsv or its folder, a BIDS folder, or a folder with one sub-folder or .zip file per class.
        output: the folder to write to.
        models: the models, the one under study first; by default adhdeepnet, eegnet, shallow, bandpower, amplitude,
            riemann (tangent space of covariances), minirocket (random convolutions), length and majority, or those of
            the run in OUTPUT. long_recording reads each recording at once; its setting mixer names the mechanism
            that mixes the seconds, such as recurrent, associative, softmax or power(block=16).
        model_options: model -> its options: space (setting -> values to search, or "published", "reduced", "none"),
            settings (fixed ones), epochs (at most), patience, reduce_patience, batch, norm_momentum.
        windows: how recordings are cut: seconds, overlap, sfreq, band, reference, channels, scaling and so on.
        protocol: nested; published, which chooses settings and epoch on the test fold as the code of the paper does, to
            show how optimistic that is; or both, for a table of the two.
        published_models: models to run under the published protocol; by default the first.
        outer: number of outer folds.
        inner: folds within each outer training part.
        repeats: number of partitions into outer folds.
        trials: settings tried for each model and outer fold.
        objective: the figure by which settings are chosen.
        stress: also fit the first model again, with the settings found, on altered data in the same outer folds: within
            1 to 40 Hz, without each mains frequency, at unit variance, at equal lengths, without each group of
            electrodes, with random phases, and with labels shuffled within sites or lengths. The report shows what is
            left of the score. A finished run may be continued with this option.
        learning_curve: also fit the first model again on a quarter, half and three quarters of the training subjects of
            each outer fold; the report shows what more subjects would bring. A finished run may be continued with it.
        cache: a folder for cut windows, which the workers of a cluster must see; by default in the output folder.
        no_explanation: skip the explanation of the first network on the test subjects of each outer fold.
        title: title of the report.
        seed: the seed from which all others are derived.
    """

    output: Path
    models: list[str] | None = None
    model_options: dict[str, dict[str, Any]] | None = None
    windows: dict[str, Any] | None = None
    protocol: Literal["nested", "published", "both"] = "nested"
    published_models: list[str] | None = None
    outer: int = 5
    inner: int = 4
    repeats: int = 1
    trials: int = 20
    objective: Literal["auc", "balanced_accuracy", "brier"] = "auc"
    stress: bool = False
    learning_curve: bool = False
    cache: Path | None = None
    no_explanation: bool = False
    title: str | None = None
    seed: int = 0

    def check(self) -> None:
        super().check()
        for option in ("stress", "learning_curve"):
            if getattr(self, option) and self.protocol == "published":
                name = option.replace("_", "-")
                raise UsageError(f"--{name} needs the nested protocol: its settings come from the inner folds")


@dataclass(frozen=True, kw_only=True)
class LockedTest(StudyOptions, ThreadOptions, OutputOptions):
    """Test the final model of a finished nested run once, on a STUDY that the run never saw.

    The final model is the mean of the outer fits of the run, with the mean of their thresholds. A study that shares
    people or EEG with that of the run is refused (exit code 4); the study of the run must still be there for this
    check. Before anything is predicted, the look is written into seal.json in the folder of the run, with hashes of
    model and study; a second look is called one. OUTPUT receives test.html, test.json and subjects.csv, with the
    figures beside those of the nested cross-validation.

    Args:
        run: the folder of the finished run.
        output: the folder to write to.
        model: the model of the run to test; by default that of the headline.
        other_people: people of the same name in both studies are different people.
        title: title of the page.
    """

    writes = ("test.html", "test.json", "subjects.csv")

    run: Path
    output: Path
    model: str | None = None
    other_people: bool = False
    title: str | None = None

    def check(self) -> None:
        super().check()
        must_exist(self.run / "results.json", "results.json of a finished run")
        must_exist(self.run / PLAN, f"{PLAN} of a run")


@dataclass(frozen=True, kw_only=True)
class Planted(ThreadOptions):
    """Test the whole pipeline, from recordings to report, on data whose truth is known.

    Half of the synthetic subjects carry an oscillation of 10 Hz on O1, O2 and Pz. Nested cross-validation of a small
    ADHDeepNet must tell them from the others, and its explanation must name the band and the channels; with shuffled
    labels on the same recordings, the interval must cover 0.5. OUTPUT receives the study, the two runs with their
    reports (planted/ and shuffled/), and planted.json. The exit code is 1 if one of these statements is false. After a
    kill, the same command continues the run.

    Args:
        output: the folder to write to.
        subjects: number of subjects.
        seconds: mean length of a recording.
        difference_uv: standard deviation of the oscillation in microvolts; the background has 10 to 30.
        outer: number of outer folds.
        trials: settings tried in each outer fold.
        jobs: processes on this machine.
        threads: CPU threads per fit.
        seed: seed of subjects, shuffle, folds and fits.
    """

    output: Path
    subjects: int = 100
    seconds: float = 12.0
    difference_uv: float = 8.0
    outer: int = 5
    trials: int = 2
    jobs: int | None = None
    threads: int = 1
    seed: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, jobs=self.jobs)


@dataclass(frozen=True, kw_only=True)
class Explain(ThreadOptions, OutputOptions):
    """Show what a network relies on: channels, frequency bands, its filters and its last features.

    WEIGHTS is the folder of a nested cross-validation, whose networks are explained on their own outer test subjects
    and averaged; or one model.safetensors with --study, which is explained on subjects outside its training data.
    OUTPUT receives explanation.json and pictures: integrated gradients by channel on a scalp map and by band (baseline
    zero; the file gives their completeness error), the cost of hiding a channel or a band, the frequency responses of
    the temporal filters, spatial filters beside their patterns, and a t-SNE of the last features, coloured by class and
    by subject. If the run already holds this explanation, with the same settings and networks, it is used again.

    Args:
        weights: the folder of a nested run, or model.safetensors with its model.json.
        study: the recordings, for one file of weights.
        output: the folder to write to; by default explain/ in a nested run.
        model: network of a nested run.
        positive: the diagnosed class, if the study does not define it.
        label_column: the column of the study that holds the label. Default: label, or in a BIDS folder group, diagnosis
            or label.
        person_column: the column that names the person; people in the training data are left out entirely.
            Default: person, if there is such a column.
        trained: also use the subjects that a single file of weights was trained on; the result mentions it.
        most_windows: largest number of windows per network; if there are more, each subject keeps an evenly spaced
            subset.
        steps: steps of the integrated gradients.
        seed: seed of the t-SNE.
    """

    writes = ("explanation.json",)

    weights: Path = field(kw_only=False)
    study: Path | None = None
    output: Path | None = None
    model: str = "adhdeepnet"
    positive: str | None = None
    label_column: str | None = None
    person_column: str | None = None
    trained: bool = False
    most_windows: int = MOST_WINDOWS
    steps: int = STEPS
    seed: int = 0

    @property
    def of_run(self) -> bool:
        """Whether WEIGHTS is the folder of a nested run."""
        return (self.weights / PLAN).is_file()

    def check(self) -> None:
        super().check()
        must_exist(self.weights, "folder of a nested run or file of weights")
        must_exist(self.study, "study")
        at_least(1, most_windows=self.most_windows, steps=self.steps)
        if not self.of_run and (self.study is None or self.output is None):
            raise UsageError(f"{self.weights} is not the folder of a nested run: --study and --output must be given")

    @property
    def in_run(self) -> bool:
        """Whether the explanation belongs to the nested run, in its folder explain/."""
        return self.of_run and (self.output is None or self.output.resolve() == (self.weights / FOLDER).resolve())

    def earlier(self) -> list[Path]:
        return [] if self.in_run else super().earlier()  # that of a run is used again if it fits
