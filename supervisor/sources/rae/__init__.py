"""Tasks from a RAE control node over HTTP."""
