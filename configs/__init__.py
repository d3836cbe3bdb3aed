"""Hydra configs: data only."""
