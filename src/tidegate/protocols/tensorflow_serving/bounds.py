"""How many fields a message may have: what a parser makes of each takes far more than it does.

Numbers that are packed into one field do not count.
"""

from __future__ import annotations

from tidegate.protocols.field_counts import Tree, check_fields
from tidegate.protocols.grpc_frames import Buffer

MOST_FIELDS = 2**20
"""Fields of a message and of the messages in it."""

_SHAPE: Tree = {2: {}}
_TENSOR: Tree = {2: _SHAPE}
_LIST: Tree = {}
_EXAMPLE: Tree = {1: {1: {2: {1: _LIST, 2: _LIST, 3: _LIST}}}}
_INPUT: Tree = {1: {1: _EXAMPLE}, 2: {1: _EXAMPLE, 2: _EXAMPLE}}
PREDICT: Tree = {2: {2: _TENSOR}}
"""A ``PredictRequest``."""
CLASSIFY: Tree = {2: _INPUT}
"""A ``ClassificationRequest`` or a ``RegressionRequest``."""


def check_message(message: Buffer, tree: Tree) -> None:
    """Refuse a message of too many fields.

    What is malformed is left to the parser.

    Raises:
        InvalidInput: it has more than ``MOST_FIELDS``.
    """
    check_fields(
        message,
        tree,
        MOST_FIELDS,
        f"the message has more than {MOST_FIELDS} fields, those of the messages in it included; "
        "send fewer elements at once, and numbers packed or in tensor_content",
    )
