"""The words of the page: names of columns, what its figures mean, and labels of the small pictures."""

from pathlib import Path

from ...runs.json_files import read_json

LABELS = {"pair": "fixed | warped", "eeg": "probability of each window"}  # kind of a case -> its small picture
TEXT_COLUMNS = ("decision",)  # metrics that are words and have a column
GLOSSARY = {
    "nmi_before": "normalised mutual information of both scans as they came: 1 for unrelated, 2 for equal images",
    "nmi_after": "the same after the alignment; higher is better",
    "sdlogj": "spread of the logarithm of the change of volume: 0 for a shift, larger where the map deforms unevenly",
    "non_positive_jacobian_percent": "share of voxels where the map folds; 0 is desired",
    "jacobian_min": "smallest change of volume: 1 for none, below 1 the moving scan is stretched, 0 or less is a fold",
    "jacobian_max": "largest change of volume",
    "dice_mean_before": "mean overlap of the labels before the alignment, 0 to 1",
    "dice_mean_after": "mean overlap of the labels after the alignment, 0 to 1",
    "bias": "mean of the result minus that of the input, in the unit of the image",
    "largest_local_bias": "largest difference of the means in a neighbourhood, in the unit of the image",
    "rms": "root mean square of the difference between result and input",
    "largest": "largest difference between result and input",
    "edge_ratio": "slope of strong edges in the result over that in the input; below 1 they are blurred",
    "structure": "correlation of neighbouring values in what was taken out; 0 for pure noise",
    "outside": "share of pixels that lie outside the intensity range of the network by more than 1 % of it",
    "noise_level": "noise level that was given, in the unit of the image",
    "given_back": "share of the removed part that was given back, since it was more than noise of this level, 0 to 1",
    "probability": "mean over the windows of the probability that the network gives; no statement about health",
    "windows": "number of windows into which the recording was cut",
    "windows_above": "windows whose probability reaches the threshold",
    "seconds": "length of the recording",
}


def column_words(output: Path, key: str) -> str:
    """The title of the column of a metric; a probability says of which class."""
    if key == "probability" and (output / "diagnosis.json").is_file():
        content = read_json(output / "diagnosis.json")
        if isinstance(content, dict) and content.get("positive"):
            return f"probability of {content['positive']}"
    return {"seconds": "length (s)"}.get(key, key.replace("_", " "))
