"""Trained networks as folders and repositories that others load: weights, description, model card."""
