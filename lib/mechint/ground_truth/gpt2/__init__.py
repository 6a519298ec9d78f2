"""GPT-2 models compiled from known circuits."""
