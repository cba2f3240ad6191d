"""`voxelwave restoration evaluate`: PSNR and SSIM of a network and of classical methods, on the same images."""

import sys
from pathlib import Path

from ...restoration.evaluation import Evaluation, evaluation_images, write_table
from ...restoration.inference import Refused
from ...restoration.known_noise import NoiseHandling
from ...restoration.settings import EvaluationSettings, TileSettings
from ...restoration.weights import load_weights
from ...runs.catalogue import entry_of, find_weights
from ...runs.compute import choose_device, use_threads
from ...runs.exit import DONE, REFUSED
from ...runs.files import outputs_beside
from ...runs.record import write_measurement
from .options import Evaluate


def evaluate(options: Evaluate) -> int:
    """Measure the images, print the scores and write the table; returns the exit code."""
    use_threads(options.threads)
    settings = EvaluationSettings.of(options)
    weights = None if options.weights is None else find_weights(options.weights, "restoration")
    network, info, entry = None, None, None
    if weights is not None:
        network, info = load_weights(
            weights, variant=options.variant, stripe_width=options.stripe_width, size=options.size
        )
        entry = entry_of(weights)
    evaluation = Evaluation(
        network=network,
        methods=options.methods,
        scale=settings.scale or (1 if info is None else info.scale),
        y_channel=options.y_channel,
        border=options.border,
        region=options.region,
        tiles=TileSettings.of(options),
        device=choose_device(options.device),
        handling=NoiseHandling.of(entry, info),
    )
    try:
        for image in evaluation_images(options.clean, settings, info=info):
            evaluation.measure(image)
            print(evaluation.line(), flush=True)
    except Refused as error:
        print(f"voxelwave: refused: {error}", file=sys.stderr)
        return REFUSED
    print(evaluation.mean_line())
    print(evaluation.conditions())
    if options.output is not None:
        _write(options.output, options, evaluation, weights)
    return DONE


def _write(output: Path, options: Evaluate, evaluation: Evaluation, weights: Path | None) -> None:
    """Write the table, and the record beside it."""
    with outputs_beside(output) as together:
        write_table(together / output.name, evaluation)
        _write_record(together / output.with_suffix(".json").name, options, evaluation, weights)
    print(f"wrote {output}")


def _write_record(path: Path, options: Evaluate, evaluation: Evaluation, weights: Path | None) -> None:
    write_measurement(
        path,
        inputs={"clean": options.clean, "degraded": options.degraded, "weights": weights},
        options={
            "degradation": options.noise,
            "scale": evaluation.scale,
            "sigma": options.sigma,
            "range": options.range,
            "seed": options.seed,
            "tile": options.tile,
            "overlap": options.overlap,
            "self_ensemble": options.self_ensemble,
            "device": evaluation.device,
            **({} if options.region == "all" else {"region": options.region}),
            **({} if options.size == "full" else {"size": options.size}),
        },
        conditions=evaluation.conditions(),
        mean=evaluation.means(),
    )
