"""Prompts and token ids from a user's files."""
