"""The files of a preview in the folder of a case, and their sizes; see `preview`."""

PREVIEWS = ".preview"
SCRIPT, PICTURE, DRAWING = f"{PREVIEWS}/images.js", f"{PREVIEWS}/small.png", f"{PREVIEWS}/small.svg"
MOST_VOXELS, LONGEST_SIDE = 1 << 20, 1024
