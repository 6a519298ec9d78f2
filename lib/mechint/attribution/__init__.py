"""Exact quantities of one run: relevance, terms by token, Jacobians, modes, attention maps."""
