"""Mutation tests: one changed line at a time of the library, each of which a test must notice (docs/testing.md)."""
