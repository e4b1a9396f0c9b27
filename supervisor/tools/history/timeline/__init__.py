"""What the node did and why, from its journal."""
