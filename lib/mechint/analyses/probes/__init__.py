"""Probes: labels read out of a site by a linear map, beside control labels."""
