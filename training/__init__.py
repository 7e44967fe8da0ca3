"""Learning what good parts look like, in PyTorch; writes runs."""
