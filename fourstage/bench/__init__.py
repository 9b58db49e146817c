"""What models cost: parameters and multiply-accumulates."""
