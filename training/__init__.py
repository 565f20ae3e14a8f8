"""PyTorch: models, checkpoints, data, losses, trainers and evaluation. torch lives here and in export."""
