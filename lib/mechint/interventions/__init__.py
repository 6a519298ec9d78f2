"""Sites that can be read and edited, runs with edits, and sweeps of thousands of edits."""
