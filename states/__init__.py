"""The decisions: what the node can see, what it may do, and the one table that decides. Pure: no IO, no clock."""
