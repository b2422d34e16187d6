"""Bytes that kernels must move and do move."""
