"""Which configuration a problem runs with: store, presets, near relatives, heuristic; and the explanation."""
