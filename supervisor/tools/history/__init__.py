"""Replay, record, what-if, dry run, diagram."""
