"""`voxelwave bench`: speed and accuracy of the kernels beside their peers."""
