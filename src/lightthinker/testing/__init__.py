"""Oracles and tiny models for tests, shipped because they help anyone who changes a mask or an engine."""
