"""Options of `voxelwave bench`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...runs.exit import UsageError
from ..options import Options, OutputOptions, ThreadOptions, at_least, must_exist

SERIES = "series"  # the folder of the series that `batch benchmark` makes
TEMPLATE = "accuracy.md.jinja"  # of the page of accuracy, in the folder of its records


@dataclass(frozen=True, kw_only=True)
class Kernels(Options):
    """Time the selective scan and other implementations, and print ratios, errors, scaling and the machine's limits.

    Args:
        device: cpu (two threads), or cuda for the Triton kernels.
        machine_code: instead of timing, compile the Triton kernels for A100 and H100, which needs no GPU, and print
            registers, instructions and the expected time on an H100.
        full: all sizes and lengths, which takes ten minutes and 6 GB of memory instead of a minute and 1 GB.
        seed: seed of the random inputs.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    machine_code: bool = False
    full: bool = False
    seed: int = 0

    def check(self) -> None:
        super().check()
        if self.machine_code and self.device == "cuda":
            raise UsageError("--machine-code measures nothing: leave out --device cuda")


@dataclass(frozen=True, kw_only=True)
class Attention(ThreadOptions, OutputOptions):
    """Measure what every attention mechanism costs and what it can do.

    The parts are: "cost", time, memory and growth against PyTorch's fused attention in one run, with four heads of 32
    channels and 256 to 65,536 tokens ("forward" and "backward" are its halves); a method stops before a length at which
    a call would take more than 20 seconds or 8 GiB. "streaming", bytes of the state and time per token up to 1,000,000
    tokens. "tasks", small models with each mechanism, trained with three seeds on six tasks: hidden patches of a scan,
    the next window of a simulated EEG, associative recall, a marked token in noise, moved patches, and the next
    fixation. OUTPUT receives attention.html (tables and curves) and attention.json.

    Args:
        output: the folder to write to.
        part: which figures to measure.
        quick: at most 4,096 tokens and 10,000 in a stream, one seed and a few steps of training; the scores then only
            show that everything runs.
        threads: CPU threads; trainings use as many processes of one thread.
        seed: seed of the random inputs.
    """

    writes = ("attention.html", "attention.json")

    output: Path
    part: Literal["all", "cost", "forward", "backward", "streaming", "tasks"] = "all"
    quick: bool = False
    threads: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchBenchmark(ThreadOptions):
    """Measure batches on a folder of series that are derived from the real ones in DATA, some of them damaged.

    The parts are: "cost", time and peak memory of `restoration restore` for the whole folder, of a second run that
    finds everything done, and of one process per series; "kills", the same run, killed by SIGKILL at random times and
    started again, whose results are then compared byte by byte with those of the undisturbed run. Memory is that of all
    processes together (Linux: proportional set size). OUTPUT receives the folders and benchmark-batch.json.

    Args:
        data: a folder with real DICOM series of single images, in any nesting.
        output: the folder to write to; it must not hold an earlier benchmark.
        part: which figures to measure.
        series: number of series, including the damaged ones.
        broken: number of damaged series; the kinds alternate: an empty file, truncated pixels, a missing slice, a
            missing position, a tilt.
        slices: number of slices per series.
        kills: number of times that the run is killed.
        jobs: number of processes of the run.
        threads: CPU threads per process.
        weights: weights of the denoiser, a file or a name that `voxelwave weights` lists.
        seed: seed of the times of the kills.
    """

    data: Path = field(kw_only=False)
    output: Path
    part: Literal["all", "cost", "kills"] = "all"
    series: int = 50
    broken: int = 5
    slices: int = 3
    kills: int = 20
    jobs: int = 1
    threads: int = 2
    weights: Path = Path("denoise-grey")
    seed: int = 0

    def check(self) -> None:
        super().check()
        must_exist(self.data, "folder of DICOM series")
        if (self.output / SERIES).exists():
            raise UsageError(f"{self.output} holds an earlier benchmark ({SERIES}): choose another --output")
        at_least(1, jobs=self.jobs, series=self.series, slices=self.slices)


@dataclass(frozen=True, kw_only=True)
class Speed(OutputOptions):
    """Measure speed with one thread, beside a peer in the same run, and compare it with a goal.

    CPU time is measured, since it depends little on what else runs; other work can still make it half as long again.

    Args:
        output: a Markdown file for the tables, such as docs/performance.md.
        quick: smaller sizes and fewer repeats: all fields take a few minutes. Some goals then do not apply.
    """

    output_is = "file"

    output: Path | None = None
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Keep(OutputOptions):
    """Keep the figures of a measurement as a small JSON file, from which `bench accuracy` makes its page.

    RECORD is the record that the run wrote: results.json of `eeg nested-cv` or of a cross-validation, or the .json file
    of a benchmark or an evaluation. The file holds command, seed, date, data, machine, versions and figures, but no
    people, files or folders.

    Args:
        record: the record of the run.
        output: the .json file to write, such as docs/results/eeg_adhd.json.
        data: the data in a few words, for the list of records on the page.
    """

    output_is = "file"

    record: Path = field(kw_only=False)
    output: Path
    data: str

    def check(self) -> None:
        super().check()
        must_exist(self.record, "record of a run")


@dataclass(frozen=True, kw_only=True)
class Accuracy(OutputOptions):
    """Write the page of accuracy from the records of measurements in a folder, and the template beside them.

    Args:
        results: the folder with the records that `bench keep` wrote, and with accuracy.md.jinja.
        output: the Markdown file to write; by default accuracy.md in the folder.
    """

    output_is = "file"

    results: Path = field(kw_only=False)
    output: Path | None = None

    def check(self) -> None:
        super().check()
        must_exist(self.results, "folder of records")
        must_exist(self.results / TEMPLATE, "template of the page")
