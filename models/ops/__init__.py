"""Sequence operators as pure functions, each beside its step-by-step twin."""
