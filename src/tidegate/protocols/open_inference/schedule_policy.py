"""The schedule policy extension: how urgent a request says that it is.

Source: ``extension_schedule_policy.md`` of Triton's protocol documents.
"""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.errors import InvalidInput
from tidegate.protocols.open_inference.tensors import shown
from tidegate.types import Parameter

PRIORITY_LEVELS = 10
"""The least urgent level; the most urgent is 1."""
DEFAULT_PRIORITY = 5
"""The level of a request that says nothing: others can go before it or after it."""


def schedule(parameters: Mapping[str, Parameter]) -> tuple[int, float | None]:
    """Return the level of a request, and the seconds in which it must be answered.

    The parameter ``priority`` is a level, 0 for the default one; a larger one than there is
    means the least urgent. ``timeout`` is in microseconds, 0 for none.

    Raises:
        InvalidInput: one of them is not a whole number of 0 or more.
    """
    priority, timeout = _number(parameters, "priority"), _number(parameters, "timeout")
    return (
        min(priority, PRIORITY_LEVELS) if priority else DEFAULT_PRIORITY,
        timeout * 1e-6 if timeout else None,
    )


def _number(parameters: Mapping[str, Parameter], key: str) -> int:
    value = parameters.get(key, 0)
    if type(value) is not int or not 0 <= value < 2**64:
        raise InvalidInput(
            f"the parameter {key} is {shown(value)}; send a whole number from 0 to 2^64 - 1"
        )
    return value
