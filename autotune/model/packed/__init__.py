"""Cost models, defaults and search spaces of packed groups."""
