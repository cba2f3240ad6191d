"""The cost of mixers that stream: bytes of their state and time per token after 1,000 to 1,000,000 tokens."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .associative import AssociativeMemory
from .baselines import EfficientAttention
from .benchmark import CHANNELS, HEADS
from .deconstructed import KeyScoredAttention
from .dynamic_sparse import DynamicSparseAttention
from .dynamical import DualityAttention
from .mixer import CS, Mixer
from .neural_memory import NeuralMemory
from .recurrent import RecurrentAttention
from .relative_convolution import RelativeConvolutionAttention

TOKENS = (1_000, 10_000, 100_000, 1_000_000)
CHUNK = 64  # tokens of a call
_STEPS, _CALLS = 200, 16  # calls whose time is measured, of one token and of a chunk
_KEPT = 8  # different chunks of random tokens


class Stream(NamedTuple):
    """A mixer that continues from a state; if the state holds all tokens so far, no more than `longest` are read."""

    make: Callable[[], Mixer]
    longest: int | None = None


STREAMS: dict[str, Stream] = {
    "recurrent": Stream(lambda: RecurrentAttention(HEADS, CHANNELS)),
    "key scored": Stream(KeyScoredAttention),
    "efficient": Stream(EfficientAttention),
    "associative, elu": Stream(lambda: AssociativeMemory("elu")),
    "associative, taylor": Stream(lambda: AssociativeMemory("taylor")),
    "associative, decay": Stream(lambda: AssociativeMemory("elu", "decay")),
    "associative, delta": Stream(lambda: AssociativeMemory("elu", "delta")),
    "duality": Stream(lambda: DualityAttention(HEADS, CHANNELS)),
    "neural memory": Stream(lambda: NeuralMemory(HEADS, CHANNELS, chunk=CHUNK)),
    "dynamic sparse": Stream(DynamicSparseAttention, 10_000),
    "relative convolution": Stream(lambda: RelativeConvolutionAttention(HEADS, CHANNELS), 10_000),
}


class StreamCost(NamedTuple):
    """The cost of a stream after some tokens, with 4 heads of 32 channels and batch 1."""

    method: str
    tokens: int
    state_bytes: int
    chunk_microseconds: float  # CPU time per token of a call with 64 tokens
    step_microseconds: float  # CPU time of a call with one token


def state_bytes(state: object) -> int:
    """The memory that a state holds, with the whole storage of each tensor, of which it may be a view."""
    storages: dict[int, int] = {}

    def collect(part: object) -> None:
        if isinstance(part, Tensor):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(part, tuple):
            for each in part:
                collect(each)

    collect(state)
    return sum(storages.values())


@torch.no_grad()
def stream_costs(name: str, tokens: Sequence[int] = TOKENS, *, seed: int = 0) -> list[StreamCost]:
    """Stream random tokens in chunks, and measure after each of these increasing numbers of tokens, rounded to chunks.

    Args:
        name: a name in `STREAMS`.
        tokens: numbers of tokens.
        seed: seed of the tokens and of the mixer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer = STREAMS[name].make()
        chunks = list(torch.randn(_KEPT, 3, 1, HEADS, CHUNK, CHANNELS).unbind())
    longest = STREAMS[name].longest
    state: object = None
    done, costs = 0, []
    for mark in tokens:
        if longest is not None and mark > longest:
            break
        calls = max(1, round(mark / CHUNK) - done)
        timed = min(calls, _CALLS)
        state = _read(mixer, chunks, state, done, calls - timed)
        started = time.process_time()
        state = _read(mixer, chunks, state, done + calls - timed, timed)
        per_token = (time.process_time() - started) / (timed * CHUNK)
        done += calls
        one = [chunk[:, :, :, :1].contiguous() for chunk in chunks]
        later = _read(mixer, one, state, 0, 1)
        started = time.process_time()
        _read(mixer, one, later, 1, _STEPS)
        per_step = (time.process_time() - started) / _STEPS
        costs.append(StreamCost(name, done * CHUNK, state_bytes(state), 1e6 * per_token, 1e6 * per_step))
    return costs


def _read(mixer: Mixer, chunks: Sequence[Tensor], state: object, first: int, calls: int) -> object:
    """The state after some more calls."""
    for call in range(first, first + calls):
        q, k, v = chunks[call % len(chunks)].unbind()
        options = {} if state is None else {"state": state}
        state = mixer(q, k, v, pattern=CS, **options).state  # type: ignore[arg-type]
    return state
