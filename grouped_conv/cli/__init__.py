"""The `grouped-conv` command."""
