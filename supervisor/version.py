"""The version, as a constant: asking importlib.metadata costs the daemon 8 ms and 1.7 MB."""

from typing import Final

VERSION: Final = "0.1.0"
