"""Label Studio's configs, prompts and regions: pure functions, no database, no network."""
