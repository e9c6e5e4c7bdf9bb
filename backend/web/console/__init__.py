"""The console at `/console`: pages for the person who runs the backend."""
