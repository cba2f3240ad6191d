"""Align two brain scans: NestedMorph, dense-field refinement, losses, metrics, training."""
