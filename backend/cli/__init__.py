"""The command `medsam3`: one module for each group of commands."""
