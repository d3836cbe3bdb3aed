"""Generators of other packages as tasks."""
