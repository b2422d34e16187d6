"""Cost models, defaults and search spaces of the implicit GEMM."""
