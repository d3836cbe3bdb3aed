"""Backbones: mixers, blocks, stacks, depth and latent schemes, with the cost of each."""
