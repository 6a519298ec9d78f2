"""Activations of a model, collected for dictionaries."""
