"""Stand-ins for what no machine of ours has: a GPU, and TensorRT on it."""
