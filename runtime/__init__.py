"""The lightweight runtime: numpy and one backend. Never torch, onnx or click."""
