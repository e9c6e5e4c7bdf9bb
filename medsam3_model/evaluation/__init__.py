"""How good a model is: metrics, modes, reports."""
