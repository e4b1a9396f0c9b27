"""The `rae-node` command: one file a command, thin."""
