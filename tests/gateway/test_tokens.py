"""The token that nodes and a gateway share, as its file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.controller.tokens import TokenFile
from tidegate.errors import ConfigurationError


def test_a_token_is_changed_while_the_gateway_runs(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    with pytest.raises(ConfigurationError):
        TokenFile(path)
    path.write_text("first-0123456789abcdef")
    file = TokenFile(path)
    path.write_text("second-0123456789abcdef")
    assert (file.read(), file.problem) == ("second-0123456789abcdef", None)
    path.chmod(0o644)
    path.write_text("third-0123456789abcdef")
    assert file.read() == "second-0123456789abcdef"
    assert "chmod 600" in str(file.problem)
    assert "third" not in str(file.problem)
    path.chmod(0o600)
    assert (file.read(), file.problem) == ("third-0123456789abcdef", None)
