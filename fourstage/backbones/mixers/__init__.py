"""Token mixers: modules from (B, H, W, C) to the same shape, any H and W."""
