"""What a trained model is measured by, whatever it was trained on."""
