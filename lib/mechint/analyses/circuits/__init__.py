"""Circuits: which units a model needs for a task, by masks that are searched for."""

ANALYSES = ("kv", "ssm", "features", "hybrid")
"""The modules that have an ``ANALYSIS``."""
