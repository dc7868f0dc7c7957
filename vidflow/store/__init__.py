"""Artifacts on disk: layout, atomic publication, shards and features."""
