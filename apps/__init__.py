"""What a person runs: one module per field, and the `voxelwave` command."""
