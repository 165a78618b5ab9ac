"""The token that nodes and a gateway share: a file with one line."""

from __future__ import annotations

from pathlib import Path

from tidegate.edge.certificates import read_private
from tidegate.errors import ConfigurationError

_SHORTEST, _LONGEST = 16, 512
"""Characters."""


def read_token(path: Path) -> str:
    """Return the token in ``path``.

    Raises:
        ConfigurationError: the file cannot be read, others may read it, or it holds no token.
            No message tells anything of it.
    """
    token = read_private(path, "a token").strip().decode("ascii", "replace")
    if not _SHORTEST <= len(token) <= _LONGEST or not all("!" <= c <= "~" for c in token):
        raise ConfigurationError(
            f"{path} holds no token: write one line of {_SHORTEST} to {_LONGEST} printable "
            "characters of ASCII into it, as 'openssl rand -hex 32' prints them"
        )
    return token


class TokenFile:
    """The token in a file, followed as it changes.

    Raises:
        ConfigurationError: as :func:`read_token`, when this is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        """Why the token that was known last is still the one that counts."""
        self._known = read_token(path)

    def read(self) -> str:
        """Return the token as it is now, or was when the file was last of use."""
        try:
            self._known = read_token(self.path)
            self.problem = None
        except ConfigurationError as error:
            self.problem = f"{error}; what was known last stays"
        return self._known
