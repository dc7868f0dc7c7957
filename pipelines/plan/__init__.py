"""Predict the cost of an experiment: the command, its measurements, its table, and the stored plan."""
