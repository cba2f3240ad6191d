"""The endings of the names of bitmaps."""

BITMAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg", ".webp", ".pgm", ".ppm")
TIFF_SUFFIXES = (".tif", ".tiff")
PNM_SUFFIXES = (".pgm", ".ppm")
