"""Attention mechanisms, each beside its plain reference."""
