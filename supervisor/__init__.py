"""The supervisor: everything that touches the world. What it decides is in `states`."""

from typing import Final

# A constant: asking importlib.metadata costs the daemon 8 ms and 1.7 MB.
VERSION: Final = "0.1.0"
