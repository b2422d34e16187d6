"""Unequal, overlapping and listed groups in one launch, and their gradients."""
