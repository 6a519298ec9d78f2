"""Causal tracing: where and when restoring an activation restores the answer."""
