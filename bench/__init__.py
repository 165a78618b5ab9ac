"""Measurements: the load generator and the comparisons made with it."""
