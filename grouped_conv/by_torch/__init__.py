"""The same results by torch's own operations."""
