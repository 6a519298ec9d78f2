"""Scores on models whose circuit is hard to find: cheap rankings, questions with three answers, sizes, and curves."""
