"""What is made small, term by term, without weights of their own but for averages."""
