"""The models, with the official parameter names and numerics; they know nothing of export."""
