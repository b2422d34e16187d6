"""Offline compilation of one configuration, and its job for the workers."""
