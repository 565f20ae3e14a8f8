"""Bundle -> engine for ONNX Runtime."""
