"""Reads one model of a repository: its settings, its versions and their files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.config.loading import MODEL_FILE, load_model_config, nearest
from tidegate.config.model import ModelConfig
from tidegate.errors import ConfigurationError, InvalidModel
from tidegate.protocols.routing import NAME_PATTERN, VERSION_PATTERN
from tidegate.repository import formats
from tidegate.repository.caffe_files import find_prototxt
from tidegate.repository.entries import ModelEntry, Problem, VersionEntry
from tidegate.repository.files import Files
from tidegate.repository.pickles import danger
from tidegate.repository.python_models import (
    CODE,
    files_of_steps,
    has_hooks,
    is_python_model,
    is_shared,
)
from tidegate.repository.serving_runtime import Refusal, choose

_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(VERSION_PATTERN)
_LIKE_VERSION = re.compile(r"[vV]?[0-9][0-9._-]*|(version|ver|rev)[0-9._-]*", re.IGNORECASE)


@dataclass(slots=True)
class _Model:
    """A model while it is being read."""

    files: Files
    installed: formats.Installed
    name: str
    config: ModelConfig = field(default_factory=ModelConfig)
    settings: Path | None = None
    folder: Path | None = None
    beside: list[Path] = field(default_factory=list)
    """What lies beside the folders of versions."""
    versions: dict[int, VersionEntry] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def invalid(self, path: Path, reason: str, hint: str = "") -> None:
        self.problems.append(Problem(self.files.relative(path), reason, "invalid", hint))

    def entry(self, own: Iterable[Path]) -> ModelEntry:
        fingerprint, changed = self.files.fingerprint(own)
        return ModelEntry(
            self.name, self.config, self.versions, tuple(self.problems), fingerprint, changed
        )


def read_file(name: str, path: Path, files: Files, installed: formats.Installed) -> ModelEntry:
    """Read a model that is a single file, or a folder such as a SavedModel."""
    model = _Model(files, installed, name)
    # Weights that lie beside a model are named after it: NAME.onnx.data, NAME.bin.
    own = [path]
    if path.is_dir():
        own += files.below(path)
    else:
        own += [
            other
            for other in files.siblings(path)
            if other.name.startswith(f"{path.stem}.") and other.suffix not in formats.EXTENSIONS
        ]
    _add_version(model, 1, path, own)
    return model.entry(own)


def read_folder(folder: Path, files: Files, installed: formats.Installed) -> ModelEntry:
    """Read a model that has a folder, with versions or without."""
    model = _Model(files, installed, folder.name)
    everything = [folder]
    try:
        everything += files.below(folder)
        _fill(model, folder)
    except OSError as error:
        _unreadable(model, folder, error)
        model.versions.clear()
    return model.entry(everything)


def _fill(model: _Model, folder: Path) -> None:
    files = model.files
    model.folder = folder
    settings = folder / MODEL_FILE
    children = files.children(folder)
    if settings in children:
        model.settings = settings
        try:
            files.check(settings)
            model.config = load_model_config(settings)
        except (ConfigurationError, InvalidModel) as error:
            reason = str(error).removeprefix(str(settings)).lstrip(":, ")
            model.invalid(settings, reason)
            return
        wanted = model.config.runtime
        if wanted is not None and wanted not in formats.REQUIREMENTS:
            known = nearest(wanted, formats.REQUIREMENTS)
            model.invalid(settings, f"runtime: this version has no runtime {wanted!r}; {known}")
            return
    numbered = [c for c in children if c.is_dir() and _VERSION.fullmatch(c.name)]
    for child in children:
        if child.is_dir() and child not in numbered and _LIKE_VERSION.fullmatch(child.name):
            model.invalid(
                child,
                "is not a version: versions are positive decimal numbers without leading zeros",
                f"rename it, perhaps to {_number(child.name)}",
            )
    if numbered:
        names = {c.name for c in numbered} | {MODEL_FILE}
        below = files.below(folder)
        model.beside = [p for p in below if p.relative_to(folder).parts[0] not in names]
        for child in sorted(numbered, key=lambda c: int(c.name)):
            _read_version(model, int(child.name), child)
        python = any(entry.format == "python" for entry in model.versions.values())
        for stray in () if python else _named_like_models(children):
            reason = "is beside version folders, which are served instead"
            model.invalid(stray, reason, "move it into a version folder of its own")
    elif not model.problems:
        _read_version(model, 1, folder)
    _check_selection(model, folder)
    _check_labels(model, folder)


def _check_labels(model: _Model, folder: Path) -> None:
    for label, version in model.config.versions.labels.items():
        if version not in model.versions:
            model.invalid(
                model.settings or folder,
                f"versions.labels: {label!r} is version {version}, which does not exist",
                f"there are {', '.join(map(str, model.versions)) or 'none'}",
            )


def _check_selection(model: _Model, folder: Path) -> None:
    only = model.config.versions.only
    for version in only or () if not model.config.versions.all else ():
        if not (folder / str(version)).exists() and version not in model.versions:
            model.invalid(
                model.settings or folder,
                f"versions names version {version}, which does not exist",
                f"there are {', '.join(map(str, model.versions)) or 'none'}",
            )


def _number(name: str) -> str:
    digits = re.search(r"[0-9]+", name)
    return str(max(1, int(digits[0]))) if digits else "1"


def _read_version(model: _Model, version: int, folder: Path) -> None:
    try:
        own = [folder, *model.files.below(folder)]
    except OSError as error:
        _unreadable(model, folder, error)
        return
    children = [c for c in own if c.parent == folder and c != model.settings]
    if not _lead_nowhere_else(model, own):
        return
    try:
        python = is_python_model(model.config, folder, model.folder, children)
    except InvalidModel as error:
        model.invalid(folder, str(error))
        return
    every = python or has_hooks(folder, model.folder)
    shared = [p for p in model.beside if every or is_shared(p, p.parent == model.folder)]
    if model.folder is not None:
        shared += [model.folder / name for name in model.config.tensorflow.libraries]
        steps = (model.folder / name for name in files_of_steps(model.config))
        shared += [path for path in steps if path.is_file()]
    if not _lead_nowhere_else(model, shared):
        return
    own += shared
    try:
        chosen = folder if python else _choose(folder, sorted(children))
    except InvalidModel as error:
        model.invalid(folder, str(error), "put one model file into it, as model.onnx")
        return
    _add_version(model, version, chosen, own, formats.FORMATS["python"] if python else None)


def _lead_nowhere_else(model: _Model, paths: Iterable[Path]) -> bool:
    for path in paths:
        try:
            model.files.check(path)
        except InvalidModel as error:
            model.invalid(path, str(error))
            return False
    return True


def _choose(folder: Path, children: list[Path]) -> Path:
    """Return the model among the files of a version's folder."""
    if any(child.name in formats.FOLDER_MARKS for child in children):
        return folder
    candidates = _named_like_models(children)
    # One of several may be called "model"; an .xml may be something else beside a model.
    for narrowed in (
        candidates,
        [c for c in candidates if c.stem == "model"],
        [c for c in candidates if c.suffix != ".xml"],
    ):
        if len(narrowed) == 1:
            return narrowed[0]
    if candidates:
        names = ", ".join(c.name for c in candidates)
        raise InvalidModel(f"holds several models ({names})")
    for child in children:
        try:
            formats.detect(child)
        except InvalidModel:
            continue
        return child
    if not children:
        raise InvalidModel("is empty")
    listed = ", ".join(c.name for c in children[:5]) + (", …" if len(children) > 5 else "")
    if any(child.suffix == ".prototxt" for child in children):
        raise InvalidModel(
            f"holds the net of a Caffe model without its .caffemodel (only {listed})"
        )
    raise InvalidModel(f"holds no model (only {listed})")


def _named_like_models(children: Iterable[Path]) -> list[Path]:
    return [c for c in children if c.suffix in formats.EXTENSIONS and not c.is_dir()]


def _add_version(
    model: _Model,
    version: int,
    path: Path,
    own: list[Path],
    known: formats.Format | None = None,
) -> None:
    try:
        found = known or formats.detect(path)
        if found.name == "caffe":
            find_prototxt(path, model.folder)
        settings = [] if model.settings is None else [model.settings]
        fingerprint, _ = model.files.fingerprint([*own, *settings])
    except InvalidModel as error:
        model.invalid(path, str(error))
        return
    except OSError as error:
        _unreadable(model, path, error)
        return
    if found.name == "torch-pickle" and model.config.trust != "pickle":
        model.invalid(path, *danger(path))
        return
    name = CODE if found.name == "python" else path.name
    runtime = choose(name, found, model.config, _installed(model))
    if isinstance(runtime, Refusal):
        relative = model.files.relative(path)
        model.problems.append(Problem(relative, runtime.reason, runtime.kind, runtime.hint))
        return
    model.versions[version] = VersionEntry(
        version,
        path,
        found.name,
        runtime,
        fingerprint,
        model.files.size(own),
        model.folder,
    )


def _installed(model: _Model) -> formats.Installed:
    """Whether a runtime is there; what another interpreter has, is seen when it is started."""
    return model.installed if model.config.environment is None else lambda runtime: True


def _unreadable(model: _Model, path: Path, error: OSError) -> None:
    where = Path(error.filename) if isinstance(error.filename, str) else path
    reason = f"cannot be read: {error.strerror or error}"
    model.invalid(where, reason, "allow the user that serves it to read it")
