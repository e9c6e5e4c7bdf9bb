"""Checkpoints: read, checked, converted, named, downloaded."""
