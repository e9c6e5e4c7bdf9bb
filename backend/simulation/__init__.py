"""`medsam3 simulate`: the training loop played with an annotator who knows the truth."""
