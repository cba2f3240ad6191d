"""`voxelwave demo`."""
