"""The metric of each task."""
