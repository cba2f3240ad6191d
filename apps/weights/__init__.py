"""`voxelwave weights`: the trained weights that can be used by name."""
