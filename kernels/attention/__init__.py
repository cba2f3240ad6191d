"""Attention mechanisms, each beside its plain reference."""

from .softmax import LinearAttentionState, attention, linear_attention, merge_attention

__all__ = ["LinearAttentionState", "attention", "linear_attention", "merge_attention"]
