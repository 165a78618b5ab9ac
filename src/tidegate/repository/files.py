"""The files of a repository: which of them count, where links may lead, fingerprints."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from tidegate.errors import InvalidModel

_IGNORED = frozenset({"__pycache__", "lost+found", "Thumbs.db", "desktop.ini"})
_PARTIAL = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".swp", ".pyc", "~")


def counts(name: str) -> bool:
    """Whether a file or folder of this name counts: neither hidden nor partly written."""
    return not name.startswith((".", "~")) and name not in _IGNORED and not name.endswith(_PARTIAL)


class Files:
    """Reads the folders below one root and refuses what lies outside of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._real = root.resolve()

    def relative(self, path: Path) -> str:
        """Return ``path`` for a message: relative to the root."""
        return path.relative_to(self.root).as_posix() if path != self.root else path.name

    def children(self, folder: Path) -> list[Path]:
        """Return what counts in ``folder``, by name.

        Raises:
            OSError: it cannot be listed.
        """
        return sorted(path for path in folder.iterdir() if counts(path.name))

    def siblings(self, path: Path) -> list[Path]:
        """Return the files that count beside ``path``."""
        return sorted(
            other
            for other in path.parent.iterdir()
            if other != path and counts(other.name) and other.is_file()
        )

    def below(self, folder: Path) -> Iterator[Path]:
        """Yield everything that counts in ``folder`` and below it, in the repository.

        Links that lead out of the repository are yielded but not followed.

        Raises:
            OSError: a folder cannot be listed.
        """
        pending = [folder]
        seen: set[Path] = set()
        while pending:
            for path in self.children(pending.pop()):
                yield path
                if path.is_dir() and self._leaves(path) is None:
                    real = path.resolve()
                    if real not in seen:
                        seen.add(real)
                        pending.append(path)

    def check(self, path: Path) -> None:
        """Refuse a link that leads out of the repository, or nowhere.

        Raises:
            InvalidModel: it does.
        """
        reason = self._leaves(path)
        if reason is not None:
            raise InvalidModel(reason)

    def fingerprint(self, paths: Iterable[Path]) -> tuple[str, float]:
        """Return a digest of names, sizes and times, and the newest change's time.

        A small text (``model.yaml``) counts by its content as well: an editor may keep its
        time and its size. A path that has gone meanwhile counts as gone.
        """
        digest = hashlib.sha256()
        changed = 0.0
        for path in sorted(set(paths)):
            digest.update(f"{self.relative(path)}\0".encode("utf-8", "surrogateescape"))
            try:
                status = path.stat()
                changed = max(changed, status.st_ctime)
                if path.is_dir():
                    continue
                digest.update(f"{status.st_size} {status.st_mtime_ns}\0".encode())
                regular = stat.S_ISREG(status.st_mode)
                if regular and path.suffix == ".yaml" and status.st_size <= 2**20:
                    digest.update(path.read_bytes())
            except OSError as error:
                digest.update(f"{error.errno}\0".encode())
        return digest.hexdigest()[:32], changed

    def size(self, paths: Iterable[Path]) -> int:
        """Return the bytes of the files among ``paths``."""
        total = 0
        for path in set(paths):
            with contextlib.suppress(OSError):
                total += 0 if path.is_dir() else path.stat().st_size
        return total

    def _leaves(self, path: Path) -> str | None:
        try:
            target = path.resolve(strict=True)
        except FileNotFoundError:
            if not path.is_symlink():
                return None  # Gone since the folder was listed.
            return f"is a link to {path.readlink()}, which does not exist"
        except (OSError, RuntimeError):
            return "is a link that cannot be followed; is it circular?"
        if target.is_relative_to(self._real):
            return None
        return f"leads to {target}, outside of the repository; copy the files into it instead"
