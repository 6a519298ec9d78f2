"""The command ``latents``: features of finished dictionaries for other programs, and explanations that are scored."""
