"""The code in a model's folder, imported as a package of its own.

What lies beside a file of code can be imported by its plain name (``import vocabulary``), as in a
script; yet it is a module of a private package (``tidegate_model_0.vocabulary``), so that two
models in one process may each have a ``vocabulary.py``. In the folder's own code a name there goes
before an installed package of that name; nobody else sees the folder, unless it is *exposed*.

The code is the operator's, as ``model.yaml`` is: who may write into the repository may run code as
the user that serves it.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import itertools
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from tidegate.errors import InvalidModel

PREFIX = "tidegate_model_"
_State: TypeAlias = "tuple[tuple[str, int, int], ...]"
_numbers = itertools.count()
_lock = threading.Lock()


class FolderCode:
    """The code in ``folders``, of which the first that has a name counts."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self.package = f"{PREFIX}{next(_numbers)}"
        """The name of the package."""
        self._builtins = {**vars(builtins), "__import__": self._import}

    def install(self) -> None:
        """Make the package known to Python's import system; nothing in it is run yet."""
        package = ModuleType(self.package, "The code of a model.")
        package.__path__ = [str(folder) for folder in self.folders]
        sys.modules[self.package] = package
        sys.meta_path.insert(0, _Finder(f"{self.package}.", self._builtins))

    def has(self, name: str) -> bool:
        """Whether a module of this plain name, as ``models.net``, is the folder's own."""
        top = name.partition(".")[0]
        return any(_holds(folder, top) for folder in self.folders)

    def path(self, file: str) -> Path | None:
        """Return where a file of this name lies, if it does."""
        return next((f / file for f in self.folders if (f / file).is_file()), None)

    def load(self, name: str) -> ModuleType:
        """Import a module by its plain name, once.

        Raises:
            InvalidModel: it raised; the message says in which line.
        """
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except (Exception, SystemExit) as error:
            place = self.place_of(error)
            raise InvalidModel(
                f"{place or name + '.py'} raised {type(error).__name__}: {error}"
            ) from error

    def expose(self) -> None:
        """Let the whole process import what is in the folder by plain names.

        That is for a process of one model. Code that imports by name (``importlib``, a pickle)
        finds the same modules; an installed package goes before them. What was exposed before is
        so no longer.
        """
        with _lock:
            for finder in [f for f in sys.meta_path if isinstance(f, _Exposed)]:
                sys.meta_path.remove(finder)
                for name in [n for n, m in sys.modules.items() if finder.owns(n, m)]:
                    del sys.modules[name]
            sys.meta_path.insert(0, _Exposed(self))

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002 - the names of the built-in
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level == 0 and self.has(name):
            inside = {"__package__": self.package, "__name__": self.package, "__spec__": None}
            return builtins.__import__(name, inside, None, fromlist or (), 1)
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    def place_of(self, error: BaseException) -> str | None:
        """Return the file of the folder, and the line, that an error came from."""
        if isinstance(error, SyntaxError) and error.filename is not None:
            return self._named(error.filename, error.lineno)
        found = None
        trace = error.__traceback__
        while trace is not None:
            found = self._named(trace.tb_frame.f_code.co_filename, trace.tb_lineno) or found
            trace = trace.tb_next
        return found

    def _named(self, file: str, line: int | None) -> str | None:
        for folder in self.folders:
            if Path(file).is_relative_to(folder):
                name = Path(file).relative_to(folder).as_posix()
                return name if line is None else f"{name}, line {line},"
        return None


_opened: dict[tuple[tuple[Path, ...], _State], FolderCode] = {}


def code_in(path: Path, folder: Path) -> FolderCode:
    """Return the code that belongs to the model at ``path`` in its ``folder``.

    It is that of the version's own folder, and of the model's. Who asks twice gets the same, as
    long as no file of it changes.
    """
    own = path if path.is_dir() else path.parent
    folders = tuple(dict.fromkeys((own.resolve(), folder.resolve())))
    with _lock:
        key = (folders, _state(folders))
        found = _opened.get(key)
        if found is None:
            importlib.invalidate_caches()
            found = _opened[key] = FolderCode(folders)
            found.install()
        return found


def _state(folders: Sequence[Path]) -> _State:
    found = set()
    for folder in folders:
        for file in folder.rglob("*.py"):
            seen = file.stat()
            found.add((str(file), seen.st_mtime_ns, seen.st_size))
    return tuple(sorted(found))


def _holds(folder: Path, top: str) -> bool:
    if (folder / f"{top}.py").is_file():
        return True
    inner = folder / top
    if inner.is_dir():
        return any(inner.glob("*.py"))
    return any(folder.glob(f"{top}.*.so")) or (folder / f"{top}.so").is_file()


class _Source(SourceFileLoader):
    """Runs a module with other built-ins, and leaves no compiled file in the repository."""

    def __init__(self, name: str, path: str, own: dict[str, Any]) -> None:
        super().__init__(name, path)
        self._own = own

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self._own
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the modules of one package."""

    def __init__(self, prefix: str, own: dict[str, Any]) -> None:
        self._prefix = prefix
        self._own = own

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(self._prefix):
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Source(spec.loader.name, spec.loader.path, self._own)
        return spec


class _Exposed(MetaPathFinder, Loader):
    """Gives the modules of a package by their plain names."""

    def __init__(self, code: FolderCode) -> None:
        self._code = code
        self._own: dict[str, ModuleSpec | None] = {}

    def owns(self, name: str, module: object) -> bool:
        """Whether ``module`` is one of the package's, under its plain name."""
        own = getattr(module, "__name__", "")
        return own == f"{self._code.package}.{name}"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        if top == fullname:
            if not self._code.has(top) or top in sys.builtin_module_names:
                return None
            if PathFinder.find_spec(top) is not None:
                return None
        elif not self.owns(top, sys.modules.get(top)):
            return None
        if importlib.util.find_spec(f"{self._code.package}.{fullname}") is None:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{self._code.package}.{spec.name}")
        self._own[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # It was run under its own name, which it keeps.
        name = module.__name__.removeprefix(f"{self._code.package}.")
        module.__spec__ = self._own.pop(name, module.__spec__)
