"""A whole study: candidates, tests with controls, and claims."""
