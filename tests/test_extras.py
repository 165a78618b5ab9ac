"""What each extra brings, told by what pyproject.toml and the packages that are here ask for."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

FRAMEWORKS = {
    "onnx": {"onnxruntime"},
    "torch": {"torch", "safetensors"},
    "tensorflow": {"tensorflow-cpu", "tensorflow", "keras"},
    "openvino": {"openvino"},
    "caffe": {"opencv-python-headless"},
}
"""What is of one runtime alone, by its extra."""
WITH_A_GPU = {"tensorrt"}
"""Has an environment of its own: its onnxruntime takes the place of the other one."""
ON_CPUS = sorted(EXTRAS.keys() - WITH_A_GPU)


def asked_by(requirement: Requirement) -> Iterator[Requirement]:
    """What a package and its chosen extras ask for, here and now."""
    if canonicalize_name(requirement.name) == "tidegate":
        lines = [line for extra in requirement.extras for line in EXTRAS[extra]]
    else:
        lines = distribution(requirement.name).requires or []
    for line in lines:
        asked = Requirement(line)
        extras = requirement.extras or {""}
        if asked.marker is None or any(asked.marker.evaluate({"extra": e}) for e in extras):
            yield asked


def brought(extras: list[str]) -> list[Requirement]:
    """Return all that ``tidegate[extras]`` asks for, of whatever depth."""
    waiting = [Requirement(line) for line in PROJECT["dependencies"]]
    if extras:
        waiting.append(Requirement(f"tidegate[{','.join(extras)}]"))
    found: dict[str, Requirement] = {}
    while waiting:
        requirement = waiting.pop()
        if str(requirement) not in found:
            found[str(requirement)] = requirement
            waiting += asked_by(requirement)
    return [r for r in found.values() if canonicalize_name(r.name) != "tidegate"]


def names(extras: list[str]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in brought(extras)}


@pytest.mark.parametrize("extra", FRAMEWORKS)
def test_a_runtime_brings_no_other(extra: str) -> None:
    found = names([extra])
    assert found & FRAMEWORKS[extra]
    for other in FRAMEWORKS.keys() - {extra}:
        assert not found & FRAMEWORKS[other]


def test_a_client_brings_no_server() -> None:
    server = {canonicalize_name(Requirement(line).name) for line in EXTRAS["serving"]}
    assert server
    assert not names([]) & server
    assert not names([]) & set().union(*FRAMEWORKS.values())


def test_all_extras_for_cpus_live_in_one_environment() -> None:
    """What is installed here, which is what is pinned, is what each of them asks for."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): Version(version) for name, version in pairs}
    for requirement in brought(ON_CPUS):
        name = canonicalize_name(requirement.name)
        here = Version(distribution(name).version)
        assert requirement.specifier.contains(here), requirement
        assert name in pinned, f"{name} is not in constraints.txt"
        # A version of a local build (2.13.0+cpu) is the public one.
        assert here.public == pinned[name].public
