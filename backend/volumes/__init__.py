"""Volumes and videos as tasks: import of series, files and videos, and where their pages are."""
