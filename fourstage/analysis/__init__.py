"""Analyses of networks: functions that return arrays and frozen dataclasses. Nothing is drawn or written here."""
