"""Decisions written, and read back by people and tools."""
