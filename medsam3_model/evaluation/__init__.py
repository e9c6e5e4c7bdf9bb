"""Evaluation of a model: metrics, modes, reports."""
