"""What a node tells its running replicas: a small file, read at the start and on SIGHUP."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel


class Notices(BaseModel):
    """The content of the file."""

    versions: dict[str, tuple[int, ...]] = {}
    """The versions that are served of each model, for its metadata."""
    quarantined: tuple[str, ...] = ()
    """Digests, in hexadecimal, of requests to refuse."""

    @classmethod
    def read(cls, path: Path) -> Notices:
        """Read the file; there need not be one."""
        return cls.model_validate_json(path.read_bytes()) if path.exists() else cls()
