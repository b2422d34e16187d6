"""Small kernels around a convolution: packing, and the second passes of split reductions."""
