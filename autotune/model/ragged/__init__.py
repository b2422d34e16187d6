"""Cost models, defaults and search spaces of unequal groups."""
