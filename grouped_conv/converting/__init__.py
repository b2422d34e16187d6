"""Existing models to our layers and back; folding of batch normalisation."""
