"""Oracles, tiny models and scripted samplers, shipped for whoever changes a mask or an engine."""
