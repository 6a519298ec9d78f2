"""Checkpoints of many formats to models of ours."""
