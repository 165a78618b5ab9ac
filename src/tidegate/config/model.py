"""The schema of ``model.yaml``: everything that can be said of one model.

Every field has a default, so the file is optional. The same schema serves every place a
model runs in.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from tidegate.config.units import Duration, Size


class Section(BaseModel):
    """A part of the schema: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Batching(Section):
    """How requests are joined into one run of the model."""

    enabled: bool | Literal["auto"] = Field(
        "auto",
        description="join requests along the first dimension; auto: when the signature has a "
        "common dynamic first dimension and a trial run shows that rows do not mix",
    )
    max_batch_size: PositiveInt = Field(32, description="the most rows in one run")
    max_queue_delay: Annotated[Duration, Field(ge=0, le=10)] = Field(
        0.0,
        description="how long an idle replica may wait for more requests to join a batch "
        "(0: it runs at once what has come)",
    )
    max_queue_size: PositiveInt = Field(
        1024, description="requests that may wait; one more is refused as RESOURCE_EXHAUSTED / 429"
    )


class Resources(Section):
    """What one replica may use."""

    cpu: Annotated[float, Field(gt=0)] | None = Field(
        None, description="cores per replica (default: the machine's, shared by its replicas)"
    )
    memory: Annotated[Size, Field(gt=0)] | None = Field(
        None, description="the most data memory of a replica, as 2GiB (default: no limit)"
    )


class Versions(Section):
    """Which versions are served; the highest of them is the default one."""

    latest: PositiveInt | None = Field(1, description="the newest N versions")
    only: tuple[PositiveInt, ...] | None = Field(None, description="exactly these versions")
    all: bool = Field(False, description="every version there is")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: object) -> object:
        if value == "all":
            return {"all": True}
        if value == "latest":
            return {}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"only": (value,)}
        if isinstance(value, list):
            return {"only": tuple(value)}
        return value

    def select(self, present: list[int]) -> tuple[int, ...]:
        """Return the versions of ``present`` to serve, ascending."""
        ordered = sorted(present)
        if self.all:
            return tuple(ordered)
        if self.only is not None:
            return tuple(v for v in ordered if v in self.only)
        return tuple(ordered[-(self.latest or 1) :])


class Limits(Section):
    """Bounds on one request."""

    timeout: Annotated[Duration, Field(gt=0)] | None = Field(
        None,
        description="the longest a request may take, in the queue and in the model, whatever "
        "the caller allows (default: the caller's deadline alone)",
    )


class ModelConfig(Section):
    """``model.yaml``."""

    runtime: str | None = Field(
        None, description="the runtime to use (default: told by the file's content)"
    )
    replicas: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="processes that serve each version"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = Field(
        "auto", description="auto, cpu, cuda or cuda:N (auto: a GPU when the runtime finds one)"
    )
    versions: Versions = Field(
        Versions(), description="latest (default), all, a list, or {latest: N}"
    )
    warmup: bool = Field(
        True, description="run the model once on zeros of its signature before it gets traffic"
    )
    batching: Batching = Batching()
    resources: Resources = Resources()
    limits: Limits = Limits()
