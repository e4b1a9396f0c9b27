"""Executors: what runs a type of task."""
