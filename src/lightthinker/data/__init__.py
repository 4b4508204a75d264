"""Traces: the formats people have them in, and how they become training batches."""
