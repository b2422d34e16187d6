"""Layers that users put into networks."""
