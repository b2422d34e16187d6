"""Processes that work for the tuner and may be killed."""
