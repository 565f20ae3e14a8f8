"""Bundle -> engine for TensorRT and TensorRT-RTX."""
