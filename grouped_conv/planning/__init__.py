"""Who computes a call, and its cached plan."""
