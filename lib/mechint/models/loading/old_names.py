"""Names of one word that the hub's models had before every one had an owner. It imports nothing: menus read it, too."""

OLD_NAMES = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "openai-gpt")},
    "distilgpt2": "distilbert/distilgpt2",
}
