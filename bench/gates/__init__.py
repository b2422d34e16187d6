"""Gates on compiled code: layers, limits and findings, one table per family."""
