"""Exported files, without torch: what they say about themselves, and how they are read, run and decoded."""
