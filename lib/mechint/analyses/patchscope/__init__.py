"""Patchscopes: a representation of one run, put into another prompt and read by what the model says there."""
