"""People: who may call this backend, in which role, and what they did."""
