"""Temporal cores: tokens of frames in, tokens of the same frames out, with a state between frames."""
