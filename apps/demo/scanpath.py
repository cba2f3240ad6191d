"""The scanpath part of `voxelwave demo`: the order in which a simulated observer looks at the objects on a shelf."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from ...scanpath.readers import read_scanpaths
from ...scanpath.weights import load_model
from ..scanpath.predict import PICTURE, predict_scene, write_prediction

WEIGHTS, SEED, SAMPLES = "planted-observer", 6, 20


def demo_scanpath(output: Path) -> None:
    """Predict scanpaths on the drawing of a shelf with the weights that come with the package.

    The weights were trained on a simulated observer with known rules: near objects first, red and yellow objects before
    others, objects already seen less often. The function writes scanpath.png and prediction.json to the folder of the
    scene, and prints the first scanpath and the objects that are fixated most.

    Args:
        output: the folder to write to.
    """
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
        f"Scanpath: {len(scene)} things on a drawn shelf, {SAMPLES} scanpaths drawn by {WEIGHTS} (simulated observer)\n"
        f"  the first: {first}\n"
        f"  looked at most: {most}; see {output / PICTURE}"
    )
