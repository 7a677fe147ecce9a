"""What benchmarks/peers.py is made of: the rivals' environments, conversions, workers, and the tables."""
