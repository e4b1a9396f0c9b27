"""Tasks from a fleet on NATS JetStream."""
