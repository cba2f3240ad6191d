"""`voxelwave restoration`: one file per verb."""
