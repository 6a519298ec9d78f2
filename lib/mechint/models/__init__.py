"""Our forwards, one file per family, and the loading of every checkpoint format."""
