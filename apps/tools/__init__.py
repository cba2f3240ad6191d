"""The commands about the program itself: `doctor`, `info` and `completion`."""
