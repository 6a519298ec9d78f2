"""Steering: directions from contrasts, what adding and removing them does, and how long a push lasts."""
