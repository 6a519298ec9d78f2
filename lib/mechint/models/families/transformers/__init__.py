"""Families whose layers mix positions by attention alone."""
