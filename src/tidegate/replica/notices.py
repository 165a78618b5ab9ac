"""What a node tells its running replicas: a small file, read at the start and on SIGHUP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

log = logging.getLogger(__name__)


Digest = Annotated[str, Field(pattern="^([0-9a-f]{2})*$")]


class Notices(BaseModel):
    """The content of the file."""

    versions: dict[str, tuple[int, ...]] = {}
    """The versions that are served of each model, for its metadata."""
    quarantined: tuple[Digest, ...] = ()
    """Digests, in hexadecimal, of requests to refuse."""
    log_level: int | None = None
    """The level of the logs, as :mod:`logging` counts; ``None``: as it was at the start."""

    @classmethod
    def read(cls, path: Path) -> Notices | None:
        """Read the file. One that is not there says nothing; ``None``: it cannot be read."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except (OSError, ValidationError) as error:
            log.warning("the notices in %s are not heeded: %s", path, error)
            return None
