"""Benchmarks: problems and providers as data, the timing protocol, figures that need no GPU, verdicts and reports.

Every figure says whether it was predicted or measured, and by which model or on which machine. Nothing else in the
package imports this folder.
"""
