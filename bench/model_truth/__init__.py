"""Outside data that the cost model is held against."""
