"""Measure vidflow on this machine: the command and one module per group of measurements."""

GROUPS = ("cores", "reduction", "adapted", "video", "cached", "read", "stages", "feeds", "planning")
