"""Models beside each other: memory, spectra, influence over time and cost."""
