"""PyTorch: models, checkpoints, data, losses, trainers and evaluation."""
