"""Training of temporal modules from cached features."""
