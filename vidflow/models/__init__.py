"""Frozen encoders, token reduction, temporal cores, readouts and tasks."""
