"""Forged folders, and what becomes of them."""
