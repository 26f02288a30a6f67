"""Fitting the networks: the loop, several processes, one module per kind of network."""
