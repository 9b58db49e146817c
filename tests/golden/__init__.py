"""Numbers that the original code printed, and the rule that rebuilds the weights they were printed with."""
