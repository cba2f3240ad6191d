"""`voxelwave bench`: speed and accuracy of the kernels compared with other implementations."""
