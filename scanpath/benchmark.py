"""Benchmarks of OAT: decoding with and without a cache, and training on an observer whose rule is known."""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..runs.record import command_line, hardware, write_record
from .baselines import NearestObject, ScanpathModel, Uniform
from .decoding import sample
from .estimators import WEIGHTS, OATEstimator, Options
from .oat import OAT, SceneBatch
from .planted import FEATURES, PlantedObserver, entropy, planted_dataset
from .scene import Dataset
from .weights import save_model

ROWS, COLUMNS = 6, 14  # of the scenes that are decoded: 84 objects
SIZES: dict[str, dict[str, Any]] = {
    "small": {"d_appearance": 1, "d_position": 63, "layers": 2, "feed_forward": 128},  # as amazon.yaml trains it
    "published": {"d_appearance": 256, "d_position": 256, "layers": 4, "feed_forward": 512},
}
PLANTED: dict[str, Any] = {
    **{"d_appearance": 16, "d_position": 48, "layers": 2, "feed_forward": 128, "dropout": 0.0, "sigma": 1.0},
    **{"lr": 2e-3, "warmup": 100, "ema_decay": 0.99, "batch": 32, "alike": True},
}


def decoding(output: Path, *, size: str, scenes: int, steps: int, repeats: int, seed: int) -> None:
    """Time decoding with and without a cache, print the figures and write benchmark-decoding.json."""
    torch.manual_seed(seed)
    network = OAT(rows=ROWS, columns=COLUMNS, appearance="none", steps=max(steps, 128), **SIZES[size]).eval()
    batches = grid_scenes(scenes)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    processor: dict[bool, list[float]] = {True: [], False: []}
    paths: dict[bool, Any] = {}
    for _ in range(repeats):
        for cache in (True, False):
            wall, cpu = time.perf_counter(), time.process_time()
            paths[cache] = decode_all(network, batches, steps, cache, seed)
            processor[cache].append(time.process_time() - cpu)
            seconds[cache].append(time.perf_counter() - wall)
    same = sum(a == b for a, b in zip(paths[True], paths[False], strict=True))
    rows = [
        {
            "decoding": "with cache" if cache else "whole path again",
            "scenes/s": scenes / statistics.median(seconds[cache]),
            "slowest": scenes / max(seconds[cache]),
            "fastest": scenes / min(seconds[cache]),
            "scenes per CPU s": scenes / statistics.median(processor[cache]),
        }
        for cache in (True, False)
    ]
    ratio, cpu_ratio = (statistics.median(t[False]) / statistics.median(t[True]) for t in (seconds, processor))
    parameters = sum(p.numel() for p in network.parameters())
    length = sum(map(len, paths[True])) / scenes
    print(
        f"{scenes} scenes of {ROWS * COLUMNS} objects, {length:.1f} fixations each; network of size {size}: width"
        f" {network.d_model}, {SIZES[size]['layers']} layers in encoder and decoder, {parameters} parameters"
    )
    for row in rows:
        print(
            f"  {row['decoding']:<16} {row['scenes/s']:.1f} scenes/s ({row['slowest']:.1f} to {row['fastest']:.1f}),"
            f" {row['scenes per CPU s']:.1f} per CPU second"
        )
    print(f"  ratio {ratio:.1f} by wall time, {cpu_ratio:.1f} by CPU time; {same} of {scenes} paths are equal")
    write_record(
        output / "benchmark-decoding.json",
        inputs={},
        rows=rows,
        ratio=ratio,
        ratio_of_processor_time=cpu_ratio,
        same_paths=same,
        scenes=scenes,
        fixations=length,
        size={"name": size, "parameters": parameters, **network.arguments},
        repeats=repeats,
        threads=torch.get_num_threads(),
        seed=seed,
        hardware=hardware(),
    )


def planted(output: Path, *, scenes: int, epochs: int, seed: int) -> dict[str, float]:
    """Train OAT on the simulated observer and write benchmark-planted.json; return the nats per token of each model."""
    observer = PlantedObserver()
    parts = [planted_dataset(n, seed=3 * seed + k) for k, n in enumerate((scenes, max(scenes // 5, 20), 500))]
    everything = Dataset(
        {name: scene for part in parts for name, scene in part.scenes.items()},
        tuple(trial for part in parts for trial in part.trials),
    )
    ends = np.cumsum([len(part) for part in parts])
    train, validation, test = (list(range(a, b)) for a, b in zip([0, *ends[:-1]], ends, strict=True))
    settings = {**PLANTED, "cosine_steps": epochs * -(-len(train) // PLANTED["batch"])}
    options = Options(network=settings, epochs=epochs, patience=epochs, appearance="features")
    estimator = OATEstimator("OAT", everything, options)
    started, cpu = time.perf_counter(), time.process_time()
    fit = estimator.fit(train, validation, {}, seed, None, None)
    took, cpu_took = time.perf_counter() - started, time.process_time() - cpu
    models: dict[str, ScanpathModel] = {"OAT": fit.model, "planted observer": observer}
    models |= {m.name: m.fit(everything, train[:500]) for m in (NearestObject(), Uniform())}
    nats = {name: _nats(model, parts[2]) for name, model in models.items()}
    floor = entropy(observer, parts[2])
    above = 100 * (nats["OAT"] / nats["planted observer"] - 1)
    print(f"{scenes} training scenes, {len(test)} test scenes; epoch {fit.epochs} of {len(fit.curve)} kept")
    for name, value in nats.items():
        print(f"  {name:<18}{value:.4f} nats per token of the test scanpaths")
    print(f"  entropy of the observer on these scanpaths {floor:.4f}; OAT is {above:.1f} % above the observer")
    print(f"  {took:.0f} s, {cpu_took:.0f} CPU s")
    notes = {
        "data": f"scenes of scanpath/planted.py, seed {3 * seed}, and their planted observer",
        "command": command_line(),
        "seed": str(seed),
        "licence": "the data are generated by this package and have its licence",
        "nats_per_token": f"{nats['OAT']:.4f}; planted observer {nats['planted observer']:.4f}",
    }
    info = replace(fit.model.info, task="planted observer", features=FEATURES, trained_on=(), notes=notes)
    save_model(output / WEIGHTS, fit.model.network, info)  # the seed replaces the list of thousands of scenes
    write_record(
        output / "benchmark-planted.json",
        inputs={},
        nats_per_token=nats,
        entropy=floor,
        percent_above=above,
        curve=fit.curve,
        epoch=fit.epochs,
        settings=settings,
        scenes=scenes,
        test_tokens=int(parts[2].lengths.sum() + len(parts[2])),
        seconds=took,
        processor_seconds=cpu_took,
        seed=seed,
        hardware=hardware(),
    )
    return nats


def _nats(model: Any, dataset: Any) -> float:
    losses = []
    for k, trial in enumerate(dataset.trials):
        scene = dataset.scene_of(k)
        tokens = np.append(trial.objects, len(scene))
        losses.append(-model.log_probabilities(scene, trial.objects)[np.arange(len(tokens)), tokens])
    return float(np.concatenate(losses).mean())


def grid_scenes(count: int, *, batch: int = 100) -> list[SceneBatch]:
    """Batches of scenes of `ROWS` x `COLUMNS` objects with different targets, whose position is given."""
    place = torch.cartesian_prod(torch.arange(ROWS), torch.arange(COLUMNS)).float()
    batches = []
    for first in range(0, count, batch):
        some = min(batch, count - first)
        yes = torch.ones(some, dtype=torch.bool)
        target = (first + torch.arange(some)) % len(place)
        present = torch.ones(some, len(place), dtype=torch.bool)
        batches.append(SceneBatch(place.expand(some, -1, -1), present, target, yes, yes))
    return batches


def decode_all(network: OAT, batches: list[SceneBatch], steps: int, cache: bool, seed: int) -> list[list[int]]:
    """A random path for each scene of each batch; equal for equal seeds."""
    paths = []
    for number, batch in enumerate(batches):
        names = [f"{number} {k}" for k in range(len(batch))]
        drawn = sample(network, batch, samples=1, max_length=steps, seed=seed, names=names, cache=cache)
        paths += [some[0] for some in drawn]
    return paths
