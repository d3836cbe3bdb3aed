"""Training: the run, its stages, its objective, optimiser, checkpoints and logs."""
