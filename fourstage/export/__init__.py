"""From a network to a file for other runtimes, which is proved against the network before it takes its name."""
