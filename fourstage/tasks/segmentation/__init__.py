"""Semantic segmentation: which class each pixel is of."""
