"""`voxelwave eeg`: one file per verb."""
