"""Attention mechanisms, each with its plain reference in the same file."""

from .softmax import LinearAttentionState, attention, linear_attention, merge_attention

__all__ = ["LinearAttentionState", "attention", "linear_attention", "merge_attention"]
