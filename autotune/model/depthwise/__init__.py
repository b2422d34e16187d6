"""Cost models, defaults and search spaces of depthwise convolutions."""
