"""The process tree of a task, and what contains it."""
