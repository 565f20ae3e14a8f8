"""Checkpoint files, read as data and checked, and written in the official layouts."""
