"""Pre-training: how the bundled weights are made."""
