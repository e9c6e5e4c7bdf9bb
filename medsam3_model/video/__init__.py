"""Frames that belong together: an object of one frame is followed through the others."""
