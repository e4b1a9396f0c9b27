"""One file a kind of sign; each posts readings and knows nothing else."""
