"""Which prototxt belongs to a ``.caffemodel``: nothing in it says so."""

from __future__ import annotations

from pathlib import Path

from tidegate.errors import InvalidModel
from tidegate.repository.files import counts

SUFFIX = ".prototxt"
_DEPLOY = f"deploy{SUFFIX}"


def find_prototxt(path: Path, folder: Path | None) -> Path:
    """Return the net's description: beside the weights, or in the model's folder for all versions.

    ``deploy.prototxt`` is taken, or the one that is named like the weights, or the only one whose
    name ends so, or the only one there is. A bare file's is named like it.

    Raises:
        InvalidModel: there is none, or nothing says which of several.
    """
    named = path.with_suffix(SUFFIX).name
    if folder is None:
        places, wanted = [path.parent], named
    else:
        places, wanted = list(dict.fromkeys((path.parent, folder))), _DEPLOY
    for place in places:
        there = [p for p in sorted(place.iterdir()) if p.suffix == SUFFIX and counts(p.name)]
        for narrowed in (
            [p for p in there if p.name == wanted],
            [p for p in there if p.name == named],
            [p for p in there if folder and p.name.endswith(_DEPLOY)],
            there if folder else [],
        ):
            if len(narrowed) == 1:
                return narrowed[0]
        if there and folder:
            names = ", ".join(p.name for p in there)
            raise InvalidModel(
                f"{path.name} is a Caffe model, but it is not clear which prototxt is its own "
                f"({names}): call it {_DEPLOY}"
            )
    beside = "" if folder is None else ", or in the model's folder"
    raise InvalidModel(
        f"{path.name} is the weights of a Caffe model, whose net is missing: put its {wanted} "
        f"beside it{beside}"
    )
