"""What runs a task, and what holds it."""
