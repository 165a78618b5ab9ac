"""What lies in a model repository: models, versions, their files, and what is wrong.

::

    NAME/1/model.onnx, NAME/2/model.onnx, NAME/model.yaml    numbered versions
    NAME/model.onnx, NAME/model.yaml                         version 1 alone
    NAME/model.py                                            version 1 alone, a class in Python
    NAME.onnx                                                version 1 alone

Hidden files, partial files and ``__pycache__`` do not count. What is wrong with one model
never hides another: it is listed as a :class:`Problem`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tidegate.config.loading import MODEL_FILE, NODE_FILE
from tidegate.errors import ConfigurationError, InvalidModel
from tidegate.protocols.routing import NAME_PATTERN, VERSION_PATTERN
from tidegate.repository import formats
from tidegate.repository.entries import ModelEntry, Problem, Repository
from tidegate.repository.files import Files
from tidegate.repository.model_reading import read_file, read_folder
from tidegate.repository.python_models import CODE

_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(VERSION_PATTERN)
_LIKE_VERSION = re.compile(r"[vV]?[0-9][0-9._-]*|(version|ver|rev)[0-9._-]*", re.IGNORECASE)


def scan(root: Path, installed: formats.Installed = formats.installed) -> Repository:
    """Look at the repository once.

    Args:
        root: The repository's folder.
        installed: Whether a runtime can be imported here.

    Raises:
        ConfigurationError: ``root`` is no folder or cannot be listed.
    """
    files = Files(_folder(root))
    models: dict[str, ModelEntry] = {}
    problems: list[Problem] = []
    folders, single = _top(files, problems)
    for path in folders:
        if _named(path.name, path, files, problems):
            models[path.name] = read_folder(path, files, installed)
    for path in single:
        if path.name == NODE_FILE or not _is_bare_model(path):
            continue
        name = path.stem if path.suffix in formats.EXTENSIONS else path.name
        if name in models:
            reason = f"there is already a model {name!r}, from another file or folder"
            problems.append(
                Problem(files.relative(path), reason, "invalid", "rename or remove one of them")
            )
        elif _named(name, path, files, problems):
            models[name] = read_file(name, path, files, installed)
    problems += _shared_tasks(models)
    return Repository(models, tuple(problems))


def _shared_tasks(models: Mapping[str, ModelEntry]) -> Iterator[Problem]:
    owners: dict[int, str] = {}
    for name in sorted(models):
        for task in models[name].config.task_ids:
            owner = owners.setdefault(task, name)
            if owner != name:
                reason = f"the task {task} is that of {owner!r} already, which gets its calls"
                hint = "remove it from task_ids of one of them"
                yield Problem(f"{name}/{MODEL_FILE}", reason, "invalid", hint)


def read_model(path: Path, installed: formats.Installed = formats.installed) -> ModelEntry:
    """Read one model by itself: a model's folder, or a model's file.

    Raises:
        ConfigurationError: there is nothing at ``path``.
    """
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist; give the path of a model or repository")
    path = path.resolve()
    if path.is_dir() and not any((path / mark).is_file() for mark in formats.FOLDER_MARKS):
        return read_folder(path, Files(path), installed)
    return read_file(path.stem, path, Files(path.parent), installed)


def is_model_folder(path: Path) -> bool:
    """Whether the folder is one model rather than a repository of them."""
    return any(
        child.name in (MODEL_FILE, CODE, *formats.FOLDER_MARKS)
        or (child.is_dir() and _VERSION.fullmatch(child.name))
        or (child.stem == "model" and child.suffix in formats.EXTENSIONS)
        for child in path.iterdir()
    )


def _folder(root: Path) -> Path:
    if root.is_dir():
        return root
    if root.exists():
        raise ConfigurationError(
            f"the model repository {root} is a file; give the folder it is in, or, if it is the "
            f"gateway.yaml of a gateway, run 'tidegate gateway {root}'"
        )
    raise ConfigurationError(
        f"the model repository {root} does not exist; create it with 'mkdir -p {root}' "
        "and copy models into it"
    )


def _top(files: Files, problems: list[Problem]) -> tuple[list[Path], list[Path]]:
    """Return the folders and the files in the root, but for those that lead out of it."""
    folders: list[Path] = []
    single: list[Path] = []
    try:
        for path in files.children(files.root):
            try:
                files.check(path)
            except InvalidModel as error:
                problems.append(Problem(files.relative(path), str(error), "invalid", ""))
            else:
                (folders if path.is_dir() else single).append(path)
    except OSError as error:
        raise ConfigurationError(
            f"the model repository {files.root} cannot be read: {error.strerror}; "
            "allow the user that serves it to read it"
        ) from error
    return folders, single


def _named(name: str, path: Path, files: Files, problems: list[Problem]) -> bool:
    if _NAME.fullmatch(name):
        return True
    problems.append(
        Problem(
            files.relative(path),
            f"{name!r} cannot be a model's name",
            "invalid",
            "rename it: letters, digits, '.', '_' and '-', at most 128, a letter or digit first",
        )
    )
    return False


def _is_bare_model(path: Path) -> bool:
    if path.suffix in formats.EXTENSIONS:
        return True
    if path.suffix:
        return False
    try:
        formats.detect(path)
    except (InvalidModel, OSError):
        return False
    return True
