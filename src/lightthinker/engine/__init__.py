"""The inference engine.

Continuous batching over a paged KV cache in which finished thoughts are really freed.
"""
