"""Packed groups: adjacent groups in one block-diagonal product per tap, and their gradients."""
