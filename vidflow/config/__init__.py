"""The configuration of an experiment: schema, loading and search space."""
