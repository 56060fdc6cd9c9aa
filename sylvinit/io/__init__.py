"""Data sets, model files, and unpickling that runs no code."""
