"""Task ids: UUIDs in their plain form, so that an id from outside can stand in a path."""

from __future__ import annotations

from typing import Any, TypeGuard
from uuid import UUID


def is_id(value: Any) -> TypeGuard[str]:
    """The value is a UUID, written with dashes and nothing around it."""
    try:
        return isinstance(value, str) and str(UUID(value)) == value.lower()
    except ValueError:
        return False


def same_id(value: Any, task_id: str) -> bool:
    """Both are the same UUID."""
    return is_id(value) and value.lower() == task_id.lower()
