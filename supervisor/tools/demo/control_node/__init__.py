"""A control node in memory."""
