"""Triton kernels: store, attend (split-KV rows, tiled prefill), sample.

Importing a module of this package imports triton; nothing outside it does so at module level, so a
machine without triton runs the torch backend.
"""
