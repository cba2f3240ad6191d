"""The `voxelwave` command: a folder per field and a file per verb, and the engines of batches and nested runs."""
