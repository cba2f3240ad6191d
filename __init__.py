"""voxelwave: registration, EEG diagnosis, restoration and scanpath prediction on one layer of kernels."""
