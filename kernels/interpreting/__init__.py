"""The kernels in Triton's interpreter: switching it on, its numerics, counting its accesses."""
