"""Bundle -> engine: builders for each backend. Never torch."""
