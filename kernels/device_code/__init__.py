"""`@triton.jit` helpers that several families share."""
