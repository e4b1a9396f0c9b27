"""A fleet on NATS JetStream: names and forms on the wire, one connection, and what an operator does with them."""
