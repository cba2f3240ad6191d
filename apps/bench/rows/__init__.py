"""The rows of `voxelwave bench FIELD`: what is timed, beside which peer, and the goal."""
