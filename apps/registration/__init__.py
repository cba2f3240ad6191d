"""`voxelwave registration`: one file per verb."""
