"""How fast a configuration should be: the cost models, defaults and search spaces, one folder per family."""
