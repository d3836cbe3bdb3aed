"""Mixers: modules that move information along time, one file a family."""
