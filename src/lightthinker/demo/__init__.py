"""The demonstration: the bundled model, or another one, at work."""
