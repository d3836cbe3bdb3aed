"""Depth: how often which blocks run."""
