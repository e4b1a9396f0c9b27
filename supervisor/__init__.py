"""The body of the node: everything that touches the world."""
