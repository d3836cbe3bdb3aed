"""Latent: thinking without words."""
