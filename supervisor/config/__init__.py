"""Reads, checks and describes both configuration files."""
