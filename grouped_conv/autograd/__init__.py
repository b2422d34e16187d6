"""Differentiation and batching rules of the operators."""
