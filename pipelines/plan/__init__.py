"""Forecast what an experiment will take: the command, its measurements, its table, and the record that stays."""
