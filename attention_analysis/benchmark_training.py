"""Training of one small model for each mechanism, task and seed, and its scores at several lengths."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.attention.choice import NAMES, Place, gates_of, mixer_of
from ..kernels.attention.deconstructed import GatedUnit
from ..kernels.attention.layer import MixingLayer
from ..kernels.attention.mixer import CS, NON_CAUSAL, NS
from ..kernels.attention.relative_convolution import RelativeConvolutionAttention
from .benchmark_tasks import LENGTHS, LONGEST, Batch, Needle, Recall, Task, TaskData, all_tasks, generator_of

DIM, HEADS, DEPTH = 32, 4, 2
CONTROL = "mlp"  # the variant of deconstructed.py that does not mix tokens
_TOKENS = 1024  # in a batch
_ALONE = 0.5  # share of the steps in which recall is trained on its shortest sequences only


class Method(NamedTuple):
    """What stands in the place of attention in the model.

    Args:
        label: name in tables.
        mixer: name of the mixer with its settings, as in a configuration; None for the control.
        gates: gates of the heads, likewise.
        addresses: whether queries and keys come from the embedding of layer 0 (static_emb_qk).
    """

    label: str
    mixer: str | None
    gates: str | None = None
    addresses: bool = False


# settings for sequences of 64 tokens, label -> text; a mechanism that is not here is used with its own defaults
_SETTINGS = {
    "landmark": {"landmark": "landmark(block=8, top=2)"},
    "routing": {
        "routing": "routing(clusters=8)",
        "routing, balanced": 'routing(clusters=8, mode="balanced")',
    },
    "power": {"power": "power(block=4, window=2)"},
    "dynamic_sparse": {
        "dynamic sparse": "dynamic_sparse(budget=32, local=16, block=16, longest=8, margin=2, radius=4)"
    },
    "bilevel": {"bi-level": "bilevel(region=[2, 2], top=4)"},
    "relative_convolution": {"relative convolution": "relative_convolution(reach=256)"},
    "neural_memory": {"neural memory": "neural_memory(chunk=16)"},
    "associative": {
        "associative, elu": "associative",
        "associative, taylor": 'associative(feature="taylor")',
        "associative, exp": 'associative(feature="exp")',
        "associative, decay": 'associative(rule="decay")',
        "associative, delta": 'associative(rule="delta")',
    },
    "workspace": {"workspace": "workspace(slots=8, top=4, straight_through=True)"},
    "graph_window": {"graph window": "graph_window(hops=2)"},
    "sliding_window": {"sliding window": "sliding_window(window=16)"},
    "head_split": {"head split": 'head_split(mixers=["softmax", "sliding_window(window=16)"], heads=[2, 2])'},
}


def all_methods() -> list[Method]:
    """Every mixer that a configuration can name, and the controls of deconstructed.py that are not mixers."""
    named = [
        Method(label, text)
        for name in NAMES
        for label, text in _SETTINGS.get(name, {name.replace("_", " "): name}).items()
    ]
    return [
        *named,
        Method("mixture of heads", "softmax", gates="mixture_of_heads(shared=1, active=2)"),
        Method("softmax, static", "softmax", addresses=True),
        Method(CONTROL, None),
    ]


def graph_of(grid: Sequence[int]) -> Tensor:
    """The neighbours on a grid, bool (n, n): two places that differ by one step along one axis."""
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, len(grid))
    return (places.unsqueeze(1) - places).abs().sum(-1) == 1


def supports(method: Method, task: Task) -> bool:
    """Whether a method has the pattern of a task; queries and keys of the embedding need self attention."""
    if method.mixer is None:
        return True
    if method.addresses:
        return task.pattern in (NS, CS)
    return task.pattern in mixer_of(method.mixer, _place(task, task.length)).patterns


def _place(task: Task, length: int) -> Place:
    grid = task.grid(length)
    grid = (1, length) if len(grid) == 1 else grid  # the regions of bi-level attention have two axes
    # a stored map has to hold the longest sequence
    return Place(HEADS, DIM // HEADS, grid=grid, graph=graph_of(grid), length=_longest(task))


def _longest(task: Task) -> int:
    return max(tokens for tokens, _ in task.sizes) if isinstance(task, Recall) else LONGEST * task.length


class TaskModel(nn.Module):
    """An embedding, two blocks of a mixing layer and a feed-forward layer each, and an output for each token.

    Args:
        task: the task.
        method: the mechanism.
        length: number of tokens; some mechanisms are made for a grid. The weights do not depend on it.
    """

    def __init__(self, task: Task, method: Method, length: int) -> None:
        super().__init__()
        self.pattern, self.addresses = task.pattern, method.addresses
        self.embed = nn.Linear(task.features, DIM)
        self.embed_context = None if task.context_features is None else nn.Linear(task.context_features, DIM)
        self.mixing = nn.ModuleList(_mixing_layer(task, method, length) for _ in range(DEPTH))
        self.forwards = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
            for _ in range(DEPTH)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(DEPTH))
        self.context_norm = nn.LayerNorm(DIM)
        self.out = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, task.outputs))

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The outputs (B, L, outputs) for tokens (B, L, features), and the loss of the head gates."""
        x = first = self.embed(tokens)
        if context is not None:
            assert self.embed_context is not None
            context = self.context_norm(self.embed_context(context))
        balance = x.new_zeros(())
        for norm, mixing, forward in zip(self.norms, self.mixing, self.forwards, strict=True):
            if isinstance(mixing, GatedUnit):
                x = x + mixing(norm(x))
            else:
                options = {"addresses": norm(first)} if self.addresses else {}
                found = mixing(norm(x), context, pattern=self.pattern, **options)
                x = x + found.out
                if found.gates is not None:
                    balance = balance + 0.01 * found.gates.balance
            x = x + forward(x)
        return self.out(x), balance


def _mixing_layer(task: Task, method: Method, length: int) -> nn.Module:
    if method.mixer is None:
        return GatedUnit(DIM)
    mixer = mixer_of(method.mixer, _place(task, length))
    if isinstance(mixer, RelativeConvolutionAttention) and task.pattern in NON_CAUSAL:
        mixer.centre()
    gates = None if method.gates is None else gates_of(method.gates, DIM, HEADS)
    return MixingLayer(DIM, HEADS, mixer, gates=gates)


class Effort(NamedTuple):
    """How long models are trained and tested."""

    training: float  # share of the steps of a task
    seeds: int
    test_batches: int


FULL, QUICK = Effort(1.0, 3, 8), Effort(0.02, 1, 1)


class Trial(NamedTuple):
    """The scores of one trained model; None in place of a number that is not finite, after a training that diverged."""

    method: str
    task: str
    seed: int
    scores: dict[str, float | None]  # measure -> value at the training length
    lengths: dict[str, float | None]  # length of the test sequences in training lengths -> the main measure
    needle: dict[str, float | None]  # "length x depth" -> accuracy; empty for other tasks
    reach: dict[str, float]  # likewise, the share of sequences in which the last output depends on that token
    parameters: int
    cpu_seconds: float


def train(task: Task, method: Method, seed: int, training: float) -> TaskModel:
    """Train one model by AdamW with a warm-up and a cosine; the seed sets its weights and its sequences."""
    generator = generator_of(task.name, seed, test=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TaskModel(task, method, task.length)
        sized = {task.length: model}
        optimiser = torch.optim.AdamW(model.parameters(), lr=task.rate, weight_decay=0.01)
        steps = math.ceil(training * task.steps)
        for step in range(steps):
            share = step / steps
            rate = min(1.0, 10 * share + 0.05) * 0.5 * (1 + math.cos(math.pi * share))
            optimiser.param_groups[0]["lr"] = task.rate * rate
            length = task.length
            if isinstance(task, Recall) and share > _ALONE:
                length = task.sizes[step % len(task.sizes)][0]
            batch = task.batch(max(1, _TOKENS // length), length, test=False, generator=generator)
            output, balance = of_length(sized, task, method, length)(batch.tokens, batch.context)
            optimiser.zero_grad()
            (_loss(task, output, batch) + balance).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    return model


def of_length(sized: dict[int, TaskModel], task: Task, method: Method, length: int) -> TaskModel:
    """The model for another length: the same parameters, and a mechanism made for its grid."""
    if length not in sized:
        model = next(iter(sized.values()))
        other = TaskModel(task, method, length)
        for name, module in model.named_modules():
            twin = other.get_submodule(name)
            for store in ("_parameters", "_buffers"):
                getattr(twin, store).update(getattr(module, store))
        sized[length] = other.train(model.training)
    return sized[length]


def _loss(task: Task, output: Tensor, batch: Batch) -> Tensor:
    found, target = output[batch.scored], batch.target[batch.scored]
    return F.cross_entropy(found, target) if task.classes else F.mse_loss(found, target)


@torch.no_grad()
def outputs_of(
    model: TaskModel, task: Task, method: Method, length: int, draw: Callable[[], Batch], batches: int
) -> tuple[Tensor, Batch]:
    """The outputs for some test batches of one length, joined to one batch."""
    sized = of_length({task.length: model}, task, method, length).eval()
    drawn = [draw() for _ in range(batches)]
    found = torch.cat([sized(batch.tokens, batch.context)[0] for batch in drawn])
    context = [batch.context for batch in drawn if batch.context is not None]
    tokens, target, scored = (
        torch.cat(parts) for parts in ([b.tokens for b in drawn], [b.target for b in drawn], [b.scored for b in drawn])
    )
    return found, Batch(tokens, torch.cat(context) if context else None, target, scored)


def measure(model: TaskModel, task: Task, method: Method, seed: int, effort: Effort) -> Trial:
    """Measure a trained model on test sequences, which are the same for all methods."""
    started = time.process_time()
    model.eval()
    scores: dict[str, float | None] = {}
    lengths: dict[str, float | None] = {}
    needle: dict[str, float | None] = {}
    reach: dict[str, float] = {}
    factors = [tokens / task.length for tokens, _ in task.sizes] if isinstance(task, Recall) else LENGTHS
    for factor in factors:
        length = round(factor * task.length)
        count = max(5, _TOKENS // length)
        generator = generator_of(f"{task.name} {length}", seed, test=True)
        output, batch = outputs_of(
            model,
            task,
            method,
            length,
            lambda n=count, at=length, g=generator: task.batch(n, at, test=True, generator=g),  # type: ignore[misc]
            effort.test_batches * (4 if isinstance(task, Needle) else 1),  # only one of its tokens is scored
        )
        sound = bool(output.isfinite().all())
        found = {name: value if sound else None for name, value in task.score(output, batch).items()}
        lengths[f"{factor:g}"] = next(iter(found.values()))
        if factor == 1 or isinstance(task, Recall):
            scores |= found
        if isinstance(task, Needle):
            for depth in task.depths:
                at = task.place(depth, length)
                here = batch.tokens[:, at, -1] == 1
                right = (output.argmax(-1) == batch.target)[here][:, -1].float().mean()
                needle[f"{factor:g} x {depth:g}"] = float(right) if sound else None
            where = connected(model, task, method, length)
            reach |= {f"{factor:g} x {d:g}": float(where[task.place(d, length)]) for d in task.depths}
    parameters = sum(p.numel() for p in model.parameters())
    spent = time.process_time() - started
    return Trial(method.label, task.name, seed, scores, lengths, needle, reach, parameters, spent)


def connected(model: TaskModel, task: Task, method: Method, length: int, tries: int = 16) -> Tensor:
    """The share of some random sequences in which the last output depends on each token, (length,).

    A mechanism with a fixed reach is connected to a token always or never; one that chooses keys, sometimes.
    """
    generator = generator_of(f"{task.name} reach", length, test=True)
    batch = task.batch(tries, length, test=True, generator=generator)
    tokens = batch.tokens.clone().requires_grad_()
    output, _ = of_length({task.length: model}, task, method, length).eval()(tokens, batch.context)
    weights = torch.randn(output.shape[-1], generator=generator)
    (gradient,) = torch.autograd.grad((output[:, -1] @ weights).sum(), tokens)
    return (gradient.abs().amax(-1) > 0).float().mean(0)


_data: TaskData | None = None


def _start_worker(data: TaskData) -> None:
    global _data
    torch.set_num_threads(1)
    _data = data


def _run(task_name: str, method: Method, seed: int, effort: Effort) -> Trial:
    assert _data is not None
    task = next(task for task in all_tasks(_data) if task.name == task_name)
    started = time.process_time()
    model = train(task, method, seed, effort.training)
    trial = measure(model, task, method, seed, effort)
    return trial._replace(cpu_seconds=time.process_time() - started)


def run_all(
    data: TaskData,
    *,
    effort: Effort,
    workers: int,
    first_seed: int = 0,
    methods: Iterable[Method] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Trial]:
    """Train and test every method on every task whose pattern it supports, in parallel processes of one thread.

    Args:
        data: recordings to cut sequences from.
        effort: steps, seeds and test batches.
        workers: number of processes; results do not depend on it.
        first_seed: the first of the seeds.
        methods: all by default.
        tell: called with a line for each finished pair of task and method.
    """
    chosen = list(all_methods() if methods is None else methods)
    pairs = [(task.name, method) for task in all_tasks(data) for method in chosen if supports(method, task)]
    done: dict[tuple[str, str], list[Trial]] = {(task, method.label): [] for task, method in pairs}
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(data,)) as pool:
        futures = [
            pool.submit(_run, task, m, seed, effort)
            for seed in range(first_seed, first_seed + effort.seeds)
            for task, m in pairs
        ]
        for future in as_completed(futures):
            trial = future.result()
            group = done[trial.task, trial.method]
            group.append(trial)
            if len(group) == effort.seeds:
                firsts = [next(iter(t.scores.values())) for t in group]
                values = " ".join("diverged" if value is None else f"{value:.3f}" for value in firsts)
                tell(f"{trial.task}, {trial.method}: {values} ({sum(t.cpu_seconds for t in group):.0f} CPU s)")
    return [trial for group in done.values() for trial in sorted(group, key=lambda t: t.seed)]
