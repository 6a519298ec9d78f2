"""Ways of ranking units for a circuit."""
