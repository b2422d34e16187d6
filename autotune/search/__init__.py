"""The search: strategies, runners that answer them, budgets, progress."""
