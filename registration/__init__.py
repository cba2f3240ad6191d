"""Alignment of two brain scans: NestedMorph, dense-field refinement, losses, metrics, training."""
