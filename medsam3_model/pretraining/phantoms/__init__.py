"""Made-up medical images with exact masks."""
