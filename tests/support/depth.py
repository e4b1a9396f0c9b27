"""How deep the random tests look: `RAE_DEEP=1` (make nightly) tries everything, otherwise a share of it."""

from __future__ import annotations

import os
from typing import Final

DEEP: Final = os.environ.get("RAE_DEEP") == "1"


def examples(deep: int, quick: int) -> int:
    """How many examples hypothesis tries."""
    return deep if DEEP else quick
