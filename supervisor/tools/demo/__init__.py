"""The first try."""
