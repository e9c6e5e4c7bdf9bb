"""Embeddings that are kept: in memory, on disk, and where all machines share them."""
