"""Networks as functions from one tensor of images to named tensors, a file for each kind of output."""
