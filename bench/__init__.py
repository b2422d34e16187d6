"""Benchmarks and checks: commands that print figures and fail when a figure is worse than promised. None needs a GPU.

Every figure says whether it was predicted or measured, and by which model or on which machine. Nothing else in the
package imports this folder.
"""
