"""Editing of facts in weights by ROME and MEMIT, and whether causal tracing says where an edit succeeds."""
