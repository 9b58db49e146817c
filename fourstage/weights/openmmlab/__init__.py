"""What a checkpoint of MMDetection or MMSegmentation says about its network, as a plain description.

A setting that the networks here do not support is refused in one sentence: a network that is almost the right one gives
numbers that look right.
"""
