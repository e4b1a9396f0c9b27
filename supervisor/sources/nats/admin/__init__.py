"""Setting up and operating a fleet: credentials, streams, submit, bridge."""
