"""Sets up and operates a fleet: credentials, streams, submit, bridge."""
