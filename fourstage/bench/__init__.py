"""Throughput, latency, memory and cost of networks."""
