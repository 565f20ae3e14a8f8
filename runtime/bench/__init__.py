"""How fast an opened engine is, stage by stage, and how far from the memory's own limit."""
