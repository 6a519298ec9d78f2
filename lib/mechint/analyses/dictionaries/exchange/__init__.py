"""Features of dictionaries for other programs: dashboards, contexts to explain, and scores of explanations."""
