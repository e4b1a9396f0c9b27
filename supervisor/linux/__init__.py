"""Adapters to the operating system, without policy."""
