"""Checkpoint -> bundle: ONNX graphs, one weights file, and the proof that they agree."""
