"""Analyses of a model: what they share, and a folder for each."""
