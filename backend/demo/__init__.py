"""`medsam3 demo`: everything at once, on this machine."""
