"""Experiments from a command line: what is asked for, what is run, what is drawn."""
