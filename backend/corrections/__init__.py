"""Corrections: what annotators submitted, kept for good, with what it did to the suggestions."""
