"""Frozen image encoders, cached token features and small recurrent cores for video."""

__version__ = "0.1.0"
