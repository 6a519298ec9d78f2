"""Models whose circuit is known and hard to find: loud decoys, superposition, several ways to one answer."""
