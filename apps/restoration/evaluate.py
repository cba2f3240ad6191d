"""`voxelwave restoration evaluate`: PSNR and SSIM of a network and of classical methods, on the same images."""

from pathlib import Path
from typing import Any, Literal

# torch and its friends load in the functions, so that --help answers at once


def evaluate(
    clean: Path,
    *,
    weights: Path | None = None,
    degraded: Path | None = None,
    degradation: str | dict[str, Any] | None = None,
    scale: int | None = None,
    sigma: float | None = None,
    methods: list[str] | None = None,
    range: str = "auto",
    slice_axis: int = 2,
    slices_per_volume: int = 10,
    grey: bool = False,
    y_channel: bool = False,
    border: int = 0,
    tile: int = 200,
    overlap: float = 0.1,
    self_ensemble: bool = False,
    variant: str | None = None,
    stripe_width: int | None = None,
    output: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> int:
    """Degrade the images of CLEAN (or take their degraded partners), restore them, and measure PSNR and SSIM.

    Per image and on average, for the degraded input, the network and the classical methods in the same run. Results and
    references are cut to the range, results rounded where the images hold whole numbers. Classical denoisers are told
    the true noise level where one was added, else an estimate from the image; the network is told nothing. The bias
    that Rician noise of a known level leaves in magnitudes is taken out of the classical results; of the network both
    are shown.

    Args:
        clean: a folder of images, volumes or DICOM series, or one of them.
        weights: of the network, a file or the name of weights that come with the package (denoise-grey); without them
            only the classical methods are measured.
        degraded: real degraded partners of CLEAN, in the same order of names.
        degradation: gaussian, rician, ct, gaussian-blur or box-blur; or kind and parameters as in a training's
            configuration, e.g. "{kind: ct, photons: 30000}"; or bicubic for super-resolution, the small images being
            made as by MATLAB's imresize.
        scale: of super-resolution, whose small images are bicubic; default the network's.
        sigma: standard deviation of the noise in the unit of the images (25 of 0 to 255); Gaussian unless --degradation
            says rician.
        methods: of nlm, wavelet, tv, bm3d; default all that are installed; none with super-resolution, where
            bicubic stands in their place.
        range: intensities that become 0 and 1, and their distance the data_range: auto, dtype, LOW,HIGH, hu:LOW,HIGH.
        slice_axis: array axis of NIfTI volumes along which slices lie.
        slices_per_volume: at most so many slices of a volume are measured, evenly spread.
        grey: turn colour images into their luminance first.
        y_channel: measure colour images on the Y channel (BT.601, 16 to 235) only.
        border: pixels left out at each side.
        tile: largest side of a tile in pixels.
        overlap: what a tile sees of its neighbours, as a share of it.
        self_ensemble: mean over eight mirrorings and rotations.
        variant: name of the published configuration, for published weights.
        stripe_width: of the scan, for published weights.
        output: a .tsv file for the table; a .json record with the options and versions is written beside it.
        seed: of the noise; each image has its own draw.
        threads: of the CPU; default all.
        device: where the network runs.
    """
    import sys

    from ...restoration.evaluation import Evaluation, evaluation_images, write_table
    from ...restoration.inference import Refused
    from ...restoration.weights import load_weights, weights_file
    from ...runs.checks import choose_device, use_threads

    use_threads(threads)
    if output is not None and output.suffix != ".tsv":
        raise ValueError(f"--output must end in .tsv, got {output}; a .json record is written beside it")
    if scale is not None and scale < 1:
        raise ValueError(f"--scale must be at least 1, got {scale}")
    if slices_per_volume < 1:
        raise ValueError(f"--slices-per-volume must be at least 1, got {slices_per_volume}")
    degradation = {"kind": degradation} if isinstance(degradation, str) else degradation
    made = degradation is not None or sigma is not None
    if degraded is not None and made:
        raise ValueError("give --degraded or else --degradation and --sigma, got both")
    if sigma is not None and degradation is not None and "sigma" in degradation:
        raise ValueError(f"give sigma once: --sigma is {sigma}, and --degradation has sigma {degradation['sigma']}")
    weights = None if weights is None else weights_file(weights)
    network, info = (
        (None, None) if weights is None else load_weights(weights, variant=variant, stripe_width=stripe_width)
    )
    if scale is None:
        scale = 1 if network is None else int(network.scale)
    if degradation == {"kind": "bicubic"}:
        if scale == 1:
            raise ValueError("--degradation bicubic needs --scale or weights for super-resolution")
        degradation = None
    if scale > 1 and (degradation is not None or sigma is not None):
        raise ValueError(f"--degradation must be bicubic for super-resolution by {scale}, and --sigma left out")
    if scale == 1 and degraded is None and not made:
        raise ValueError("give one of --degraded, --degradation and --sigma")
    evaluation = Evaluation(
        network=network,
        methods=methods,
        scale=scale,
        y_channel=y_channel,
        border=border,
        options={"tile": tile, "overlap": overlap, "self_ensemble": self_ensemble, "device": choose_device(device)},
    )
    try:
        images = evaluation_images(
            clean,
            degraded=degraded,
            degradation=degradation,
            sigma=sigma,
            info=info,
            how=range,
            slice_axis=slice_axis,
            per_volume=slices_per_volume,
            grey=grey,
            scale=scale,
            slices=1 if network is None or network.in_channels == network.out_channels else network.in_channels,
            seed=seed,
        )
        for image in images:
            evaluation.measure(image)
            print(evaluation.line(), flush=True)
    except Refused as error:
        print(f"voxelwave: refused: {error}", file=sys.stderr)
        return 4
    print(evaluation.mean_line())
    print(evaluation.conditions())
    if output is not None:
        write_table(output, evaluation)
        from ...runs.record import write_record

        write_record(
            output.with_suffix(".json"),
            inputs={"clean": clean, "degraded": degraded, "weights": weights},
            options={
                "degradation": degradation,
                "scale": scale,
                "sigma": sigma,
                "range": range,
                "seed": seed,
                **evaluation.options,
            },
            conditions=evaluation.conditions(),
            mean=evaluation.means(),
        )
        print(f"wrote {output}")
    return 0
