"""Before a model runs: tuning, warming up, explaining."""
