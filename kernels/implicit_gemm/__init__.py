"""The implicit GEMM, for any equal groups: forward, input gradient, weight gradient."""
