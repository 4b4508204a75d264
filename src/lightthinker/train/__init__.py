"""Recipes, packed training on transformers' Trainer, checkpoints."""
