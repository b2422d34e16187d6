"""Verification and timing on a live device."""
