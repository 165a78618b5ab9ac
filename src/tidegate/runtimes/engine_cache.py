"""Where engines that take minutes to build are kept, for all replicas of a user.

An engine is code: nobody else may write there. It depends on the weights, which onnxruntime's own
names of engines do not tell (https://github.com/microsoft/onnxruntime/issues/6455), so each model
has a folder of its own, by its content and all that the engine is built for.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from tidegate.errors import ConfigurationError, InvalidModel

log = logging.getLogger(__name__)

Built = TypeVar("Built")


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of all engines: in ``$XDG_CACHE_HOME``, or ``~/.cache``.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/.
    """
    given = environment.get("XDG_CACHE_HOME", "")
    home = Path(given) if given.startswith("/") else Path.home() / ".cache"
    return home / "tidegate" / "engines"


def key_of(files: Iterable[Path], about: Mapping[str, str]) -> str:
    """Return the name of the folder for the model in ``files``, built for what ``about`` says.

    Raises:
        InvalidModel: a file cannot be read.
    """
    found = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InvalidModel(f"{path.name} cannot be read: {error.strerror}") from error
    for name, value in sorted(about.items()):
        found.update(f"{name}={value}\n".encode())
    return found.hexdigest()[:32]


class EngineCache:
    """The engines of one model, which one process at a time builds or takes.

    Half an engine is never taken for a whole one: a folder gets its name when it is complete.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._whole = folder / key
        self._part = folder / f"{key}.part"
        self._lock = folder / f"{key}.lock"

    def use(self, build: Callable[[Path], Built]) -> Built:
        """Call ``build`` with the folder of the engines, empty or complete, and keep the rest out.

        Engines that turn out to be unusable are built again.

        Raises:
            ConfigurationError: the cache cannot be written, or others could write there.
        """
        self._prepare()
        with self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._whole.is_dir():
                try:
                    return build(self._whole)
                except InvalidModel as error:
                    log.warning("the engines in %s are built again: %s", self._whole, error)
                    shutil.rmtree(self._whole)
            shutil.rmtree(self._part, ignore_errors=True)
            self._part.mkdir(mode=0o700)
            built = build(self._part)
            self._part.rename(self._whole)
            return built

    def _prepare(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._folder.stat()
            with self._lock.open("a"):
                pass
        except OSError as error:
            raise ConfigurationError(
                f"the cache of engines {self._folder} cannot be written: {error.strerror}; set "
                "XDG_CACHE_HOME to a folder that can"
            ) from error
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise ConfigurationError(
                f"others may write into the cache of engines {self._folder}, and engines are "
                f"code: remove it, or run 'chmod go-w {self._folder}'"
            )
