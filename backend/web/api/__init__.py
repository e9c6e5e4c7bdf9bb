"""Endpoints of our own, beside Label Studio's contract: `/api/v1/...`."""
