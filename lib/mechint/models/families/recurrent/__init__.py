"""Families with a recurrence: state-space models, gated delta rules, short convolutions, and their hybrids."""
