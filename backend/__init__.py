"""The Label Studio side of MedSAM-3: HTTP contract, queue, corrections, training policy."""
