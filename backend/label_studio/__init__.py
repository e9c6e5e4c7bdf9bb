"""Label Studio from the outside: its API, its images, a server of it for demo and tests."""
