"""Mamba models compiled from known circuits."""
