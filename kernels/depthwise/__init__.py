"""One channel per group, without tensor cores, and its gradients."""
