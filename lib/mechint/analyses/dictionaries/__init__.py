"""Sparse autoencoders of the activations of a model, trained and judged."""
