"""Training: data, losses, the loop, many adapters at once, checkpoints, sweeps, distributed."""
