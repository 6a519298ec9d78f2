"""Activation patching: runs of one prompt with activations of another."""
