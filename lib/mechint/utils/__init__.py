"""Helpers that every room may use, and that import no other room."""
