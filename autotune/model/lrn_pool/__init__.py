"""Cost model and defaults of LRN and max-pooling."""
