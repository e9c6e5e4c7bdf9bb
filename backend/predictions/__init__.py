"""Predictions: asked for, made by the GPU worker, brought to Label Studio."""
