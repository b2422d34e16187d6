"""Bytes that kernels must move, and the calls whose bytes are counted."""
