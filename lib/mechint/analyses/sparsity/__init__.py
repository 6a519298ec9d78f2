"""How sparse activations are."""
