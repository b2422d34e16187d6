"""A grouped convolution and the 1x1 convolution after it, in one kernel."""
