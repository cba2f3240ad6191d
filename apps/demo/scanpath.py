"""The scanpath part of `voxelwave demo`: in which order a planted observer looks at the things on a drawn shelf."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

# torch and its friends load in the functions, so that --help answers at once

WEIGHTS, SEED, SAMPLES = "planted-observer", 6, 20


def demo_scanpath(output: Path) -> None:
    """Predict scanpaths on the drawing of a shelf by the weights that come with the package.

    They have learnt an observer that is known exactly: near things first, red and yellow ones before others, seen ones
    less. Writes scanpath.png and prediction.json beside the scene, and prints what it looks at first and most.

    Args:
        output: the folder to write into.
    """
    import numpy as np

    from ...scanpath.readers import read_scanpaths
    from ...scanpath.weights import load_model
    from ..scanpath.predict import PICTURE, predict_scene, write_prediction

    output.mkdir(parents=True, exist_ok=True)
    with as_file(files(__package__) / "data") as data:
        for name in ("shelf.json", "shelf.png"):
            shutil.copyfile(data / name, output / name)
    scene = next(iter(read_scanpaths(output / "shelf.json").scenes.values()))
    model = load_model(WEIGHTS)
    how = {"samples": SAMPLES, "temperature": 1.0, "width": 8, "seed": SEED, "max_length": None}
    prediction = predict_scene(model, scene, "sample", how)
    write_prediction(output, scene, prediction)
    share = np.array(prediction["fixation_probability"])
    most = ", ".join(f"{scene.objects[k].name} {100 * share[k]:.0f} %" for k in np.argsort(-share)[:4])
    first = " > ".join(prediction["paths"][0]["names"])
    print(
        f"Scanpath: {len(scene)} things on a drawn shelf, {SAMPLES} scanpaths drawn by {WEIGHTS} (a made-up observer)\n"
        f"  the first: {first}\n"
        f"  looked at most: {most}; see {output / PICTURE}"
    )
