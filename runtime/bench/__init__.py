"""Measuring a bundle: latency, throughput, memory, cold start, soak."""
