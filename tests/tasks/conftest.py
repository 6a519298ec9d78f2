"""Fixtures of the tests of tasks."""

from tests.helpers.own_prompts import checkpoint

__all__ = ["checkpoint"]
