"""Single units: their effects, what they attend to, and effects between layers."""
