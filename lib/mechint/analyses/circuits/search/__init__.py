"""The search for a circuit: gates that learn which units to keep, and the pruning of what they keep."""
