"""Attention and selective scan: the fast mathematics that every field shares."""
