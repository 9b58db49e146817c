"""Object detection and instance segmentation with the arithmetic of MMDetection 3.3: one file for each detector."""
