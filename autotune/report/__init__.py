"""Reports of a search: tables, rows, plots, one HTML page."""
