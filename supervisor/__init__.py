"""The supervisor: everything that touches the world. What it decides is in `states`."""

# A constant: asking importlib.metadata costs the daemon 8 ms and 1.7 MB. Without Final: each task's shim would import typing.
VERSION = "0.1.0"
