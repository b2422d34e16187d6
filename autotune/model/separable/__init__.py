"""Cost model, default and planner of separable blocks."""
