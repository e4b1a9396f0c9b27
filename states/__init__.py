"""The mind of the node: what it can see, what it may do, and the one table that decides. Pure: no IO, no clock."""
