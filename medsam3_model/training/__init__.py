"""Fine-tuning of the detector; both encoders stay frozen."""
