"""Reads the file of API keys: a line for each, ``NAME KEY``; ``#`` begins a comment.

A name may have several keys, so that a new one can be handed out before the old one goes. No
message tells anything of a key.
"""

from __future__ import annotations

import re
from pathlib import Path

from tidegate.edge.certificates import read_private
from tidegate.edge.trust import ApiKey, ApiKeys
from tidegate.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}")
_SECRET = re.compile(r"[!-~]+")
_SHORTEST, _LONGEST = 16, 512
_MOST = 10_000


def read_api_keys(path: Path, header: str = "x-api-key") -> ApiKeys:
    """Read the keys of ``path``.

    Raises:
        ConfigurationError: others may read the file, it holds no key, or a line is wrong.
    """
    content = read_private(path, "API keys")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is no text in UTF-8") from None
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(lines, 1):
        words = [] if line.lstrip().startswith("#") else line.split()
        if not words:
            continue
        key = _key(f"{path}, line {number}", words)
        if key.secret in keys:
            other = keys[key.secret].name
            raise ConfigurationError(
                f"{path}, line {number}: {key.name} has the same key as {other}: give each its own"
            )
        keys[key.secret] = key
    if not keys:
        raise ConfigurationError(
            f"{path} holds no key, so nobody could call: write lines 'NAME KEY', with keys as "
            "'openssl rand -hex 32' prints them"
        )
    if len(keys) > _MOST:
        raise ConfigurationError(f"{path} holds {len(keys)} keys, and {_MOST} are allowed")
    return ApiKeys(tuple(keys.values()), header)


def _key(place: str, words: list[str]) -> ApiKey:
    if len(words) != 2:
        raise ConfigurationError(
            f"{place}: there are {len(words)} words: write 'NAME KEY', a comment on its own line"
        )
    name, secret = words
    if not _NAME.fullmatch(name):
        # It may be the key, if the two are swapped.
        raise ConfigurationError(
            f"{place}: the first word is not a name: use letters, digits, '.', '_' and '-', at "
            "most 48 of them; the key comes after it"
        )
    if not _SECRET.fullmatch(secret) or not _SHORTEST <= len(secret) <= _LONGEST:
        raise ConfigurationError(
            f"{place}: the second word, the key, is not {_SHORTEST} to {_LONGEST} printable "
            "characters of ASCII: take what 'openssl rand -hex 32' prints"
        )
    return ApiKey(name, secret)
