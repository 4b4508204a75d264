"""More than one engine: offline batches with exactly-once output, and replicas on Ray."""
