"""The models, with exactly the official parameter names and numerics; they know nothing of export."""
