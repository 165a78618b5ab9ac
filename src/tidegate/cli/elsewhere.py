"""Loads a model by the interpreter that its ``model.yaml`` names, to see its signatures."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

from pydantic import ValidationError

from tidegate.config.model import ModelConfig
from tidegate.errors import InvalidModel
from tidegate.node import environments
from tidegate.replica.describe import Described, Wanted
from tidegate.repository.entries import VersionEntry
from tidegate.types import Signature

_LAST = 300


def signatures_by(
    interpreter: Path, version: VersionEntry, config: ModelConfig
) -> tuple[Signature, dict[str, Signature]]:
    """Load a version of a model in another process.

    Returns:
        Its public signature, and by name those beside it.

    Raises:
        ConfigurationError: the interpreter cannot do it.
        ModelError: the model cannot be loaded.
    """
    asyncio.run(environments.check(interpreter, version.runtime))
    wanted = Wanted(
        runtime=version.runtime, path=version.path, folder=version.folder, config=config
    )
    done = subprocess.run(
        [str(interpreter), "-m", "tidegate.replica.describe"],
        input=wanted.model_dump_json().encode(),
        capture_output=True,
        env=environments.variables(os.environ),
        check=False,
    )
    try:
        described = Described.model_validate_json(done.stdout)
    except ValidationError as error:
        said = done.stderr.decode("utf-8", "replace").strip()[-_LAST:]
        raise InvalidModel(
            f"{interpreter} ended with status {done.returncode} while it loaded the model: {said}"
        ) from error
    return described.signatures()
