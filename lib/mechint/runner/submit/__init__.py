"""An experiment as many jobs, each of one checkpoint and one analysis: on this machine, or on a cluster."""
