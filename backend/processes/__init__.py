"""The processes of one machine: queues, workers, an embedded Redis, and who restarts them."""
