"""Tokenizer families: one module per family, and what all of them must offer (family.py)."""
