"""Model versions: which weights there are, which serve a project, and how they are loaded."""
