"""What `m2kit bench` compares engines with, and the picture of what it measured."""
