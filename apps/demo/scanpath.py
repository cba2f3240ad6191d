"""The scanpath part of `voxelwave demo`: the order in which a simulated observer looks at the objects on a shelf."""

from pathlib import Path

import numpy as np

from ...scanpath.readers import read_scanpaths
from ...scanpath.weights import load_model
from ..scanpath.predict import PICTURE, predict_scene, write_prediction
from .page import Shown

WEIGHTS, SEED, SAMPLES = "planted-observer", 6, 20


def demo_scanpath(output: Path) -> Shown:
    """Predict scanpaths on the drawing of a shelf with the weights that come with the package.

    The weights were trained on a simulated observer with known rules: near objects first, red and yellow objects before
    others, objects already seen less often.

    Args:
        output: the folder of the demo, with the drawing in data/.
    """
    place = output / "data" / "shelf.json"
    scene = next(iter(read_scanpaths(place).scenes.values()))
    model = load_model(WEIGHTS)
    how = {"samples": SAMPLES, "temperature": 1.0, "width": 8, "seed": SEED, "max_length": None}
    prediction = predict_scene(model, scene, "sample", how)
    write_prediction(output / "scanpath", scene, prediction)
    share = np.array(prediction["fixation_probability"])
    most = ", ".join(f"{scene.objects[k].name} {100 * share[k]:.0f} %" for k in np.argsort(-share)[:4])
    first = " > ".join(prediction["paths"][0]["names"])
    print(
        f"  {len(scene)} things on a drawn shelf, {SAMPLES} scanpaths drawn by {WEIGHTS} (simulated observer)\n"
        f"  the first: {first}\n"
        f"  looked at most: {most}"
    )
    return Shown(
        f"A network that has learnt the rules of a simulated observer (near objects first, red and yellow ones before"
        f" others) draws {SAMPLES} scanpaths on a drawing; it does not predict real people. Looked at most: {most}.",
        f"scanpath/{PICTURE}",
        f"voxelwave scanpath predict -i {place} -o {output / 'scanpath'} --weights {WEIGHTS} --decode sample"
        f" --samples {SAMPLES} --seed {SEED} --overwrite",
        {"all paths": "scanpath/prediction.json"},
    )
