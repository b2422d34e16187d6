"""What the cost models of several families share: the machine, streaming kernels, GEMMs."""
