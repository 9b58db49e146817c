"""What a checkpoint of MMDetection or MMSegmentation says about its network, as a plain description.

What a configuration contains and cannot be had here is refused in one sentence: a network that is almost the right one
gives numbers that look right.
"""
