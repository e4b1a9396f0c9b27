"""Signs of a person."""
