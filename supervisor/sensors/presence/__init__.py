"""Sources of signs of the person."""
