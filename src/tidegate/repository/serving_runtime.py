"""Which runtime serves a model: what its format allows, what ``model.yaml`` asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tidegate.config.model import ModelConfig
from tidegate.repository.formats import REQUIREMENTS, Format, Installed


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model is not served, and what to do about it."""

    kind: Literal["invalid", "skipped"]
    reason: str
    hint: str


def choose(file: str, found: Format, config: ModelConfig, installed: Installed) -> str | Refusal:
    """Return the runtime that serves ``file``, a model in the format ``found``.

    Without ``runtime`` in ``model.yaml`` it is the first that serves the format, whatever else is
    installed: the same folder is served alike everywhere.
    """
    if found.runtime is None:
        reason = f"{file} is {found.title}, which is not served by this version of Tidegate"
        return Refusal("skipped", reason, found.advice)
    runtime = config.runtime or found.runtime
    if runtime not in found.runtimes:
        reason = f"{file} is {found.title}, but model.yaml asks for the runtime {runtime!r}"
        others = " or ".join(found.runtimes)
        return Refusal("invalid", reason, f"remove the key or write runtime: {others}")
    foreign = _foreign_options(config, runtime)
    if foreign is not None:
        reason = (
            f"model.yaml has options under {foreign}, but {file} is {found.title}, "
            f"served by the runtime {runtime}"
        )
        switch = f" or write runtime: {foreign}" if foreign in found.runtimes else ""
        return Refusal("invalid", reason, f"remove them{switch}")
    if not installed(runtime):
        reason = f"{file} is {found.title}, whose runtime {runtime} is not installed"
        hint = f"install it: {REQUIREMENTS[runtime].command}"
        here = [other for other in found.runtimes if other != runtime and installed(other)]
        return Refusal("skipped", reason, f"{hint}, or write runtime: {here[0]}" if here else hint)
    return runtime


def _foreign_options(config: ModelConfig, runtime: str) -> str | None:
    """Return the section of another runtime that has options; it has the runtime's name."""
    plain = ModelConfig()
    for name in REQUIREMENTS:
        if name != runtime and getattr(config, name, None) != getattr(plain, name, None):
            return name
    return None
