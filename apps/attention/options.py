"""Options of `voxelwave attention`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...runs.exit import UsageError
from ..options import InputOptions, OutputOptions, ThreadOptions, at_least, must_exist


@dataclass(frozen=True, kw_only=True)
class Tasks(ThreadOptions, OutputOptions):
    """Train small models on tasks whose solution is known, and show what their attention has learned.

    The parts are: "icl", classification in context and the onset of an induction circuit; "regression", one head and
    two heads compared with a debiased step of gradient descent; "shortcut", structure or frequent pairs in nested
    sequences; "grounding", whether a map of attention finds the target of a search display or a lesion; "curriculum",
    pre-training under a growing mask against training from scratch. OUTPUT receives tasks.html and tasks.json. The
    models are small and the data are synthetic: the figures say nothing about large models.

    Args:
        output: the folder to write to.
        part: which tasks to run.
        seeds: number of seeds of each training in the part "icl".
        quick: few training steps, to try the command; the figures then mean little.
        threads: CPU threads.
        seed: the first seed.
    """

    writes = ("tasks.html", "tasks.json")

    output: Path
    part: Literal["all", "icl", "regression", "shortcut", "grounding", "curriculum"] = "all"
    seeds: int = 6
    quick: bool = False
    threads: int = 2
    seed: int = 0

    def check(self) -> None:
        super().check()
        at_least(1, seeds=self.seeds)


@dataclass(frozen=True, kw_only=True)
class Explain(ThreadOptions, OutputOptions):
    """Show what the attention of a trained network does on given inputs, as one page that needs no network.

    The inputs are scenes, for weights of OAT; EEG recordings, for weights of long_recording or adhdeepnet; or a pair of
    scans, for weights of NestedMorph. Of a study (a table of subjects or of pairs, or many scenes), figures are means
    over subjects or layouts with intervals. The page shows which heads matter and whether the network still decides the
    same without them, what each head's pattern is, sinks, where the attention goes, and what hiding or replacing a part
    of the input changes; a paragraph in plain words is made from the figures. For adhdeepnet, which has no attention
    heads, it shows the gates of its channels. Attention shows where information comes from, not why a decision is
    right. This is research software, not a medical device.

    Args:
        input: a file or folder of scenes (docs/scanpath_format.md) or of recordings, a study (subjects.tsv,
            participants.tsv or a folder with one of them), the moving scan of a pair, or a table of pairs (pairs.tsv,
            .csv or .json with the columns moving and fixed) or its folder.
        output: the folder to write to; it receives attention.html and attention.json.
        weights: the weight file, its folder, or a name that `voxelwave weights` lists.
        fixed: the fixed scan of a pair.
        label: a label map on the grid of the moving scan, such as of a lesion; the page then shows how much attention
            its place gets, with a box around it.
        most: largest number of inputs; of a study, the largest number of subjects, spread evenly over its table.
    """

    writes = ("attention.html", "attention.json")

    input: Path
    output: Path
    weights: Path
    fixed: Path | None = None
    label: Path | None = None
    most: int = 20

    def check(self) -> None:
        super().check()
        must_exist(self.input, "scene, recording, scan or folder")
        must_exist(self.fixed, "scan")
        must_exist(self.label, "label map")
        if self.label is not None and self.fixed is None:
            raise UsageError("--label belongs to the moving scan of a pair: give --input MOVING and --fixed FIXED too")
        at_least(1, most=self.most)


@dataclass(frozen=True, kw_only=True)
class Tune(ThreadOptions, InputOptions, OutputOptions):
    """Try changes of the attention of a trained network without training, and keep the network as it is if none helps.

    The network is OAT, with people's scanpaths, or long_recording, with a study. Single heads are removed, sinks
    calibrated or given back to a group of tokens, one token's weight is scaled, a group is emphasised or weakened, and
    the heads that depend on it are reinforced. The groups are the objects and the token that names the target, or the
    loudest tenth of the seconds and the others. One half of the layouts or subjects is used to choose, at a level that
    is corrected for the number of attempts; the chosen change is then measured once on the other half. Layouts and
    subjects of the training are left out. OUTPUT receives tune.html and tune.json with all attempts. The weight file is
    not changed.

    Args:
        study: scenes with people's scanpaths, as `voxelwave scanpath train` reads them, or a study, as
            `voxelwave eeg train` reads it.
        output: the folder to write to.
        weights: weights of OAT or of long_recording, or a name that `voxelwave weights` lists.
        most: largest number of layouts or subjects.
        seed: seed of the division into halves.
    """

    first_word = "study"
    writes = ("tune.html", "tune.json")

    study: Path | None = field(default=None, kw_only=False)
    output: Path
    weights: Path
    most: int = 60
    seed: int = 0

    def check(self) -> None:
        super().check()
        must_exist(self.input, "file or folder of scanpaths, or study")
        at_least(4, most=self.most)
