"""One module per graph of the contract, and two of shared layers (convolutional, attention)."""
