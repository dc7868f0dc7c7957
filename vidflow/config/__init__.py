"""Experiment configuration: schema, loading and search space."""
