"""Path patching: what one part of a model gives another one directly."""
