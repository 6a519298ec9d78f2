"""transformers as a judge in float64: random small models of each family, one file a group of families."""
