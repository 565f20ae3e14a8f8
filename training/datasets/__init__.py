"""Data sets: what each one is, and the table of them by name."""
