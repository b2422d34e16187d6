"""Named problems, and the layers of models as problems."""
