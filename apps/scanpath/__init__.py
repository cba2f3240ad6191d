"""`voxelwave scanpath`: one file per verb."""
