"""The web process: what Label Studio calls, and endpoints of our own."""
