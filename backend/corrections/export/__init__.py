"""Dataset versions as files: one module for each format."""
