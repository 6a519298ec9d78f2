"""The logit lens, the tuned lens and direct logit attribution: next tokens and contributions at every layer."""
