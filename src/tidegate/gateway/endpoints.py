"""What every source of endpoints gives: a place where a model is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from tidegate.config.addresses import join_address, numeric_address
from tidegate.config.endpoints import Protocol
from tidegate.errors import ConfigurationError
from tidegate.protocols.open_inference.endpoints import LARGEST_WEIGHT

PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
LARGEST_PRIORITY = 127
"""Envoy's own bound on the priorities of a cluster is 128."""
_LONGEST_NAME = 253


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server of a model.

    Raises:
        ConfigurationError: an address is not ``IP:port``, or a number is out of its range; the
            message says which.
    """

    address: str
    """``10.0.0.7:8000`` or ``[fd00::1]:8000``, never a name; gRPC and, for tidegate, REST."""
    protocol: Protocol
    rest: str | None = None
    """Where REST is answered, if elsewhere; for other protocols ``None`` means no REST."""
    weight: int = 100
    """Its share of the work beside the others, from 1 to :data:`LARGEST_WEIGHT`."""
    priority: int = 0
    """0 is asked first; 1, 2 and so on take over when those before them are down: to 127."""
    versions: frozenset[int] | None = None
    """``None``: not known, it may be asked for any."""
    labels: frozenset[str] | None = None
    name: str = ""
    """How people call it: a host's, a node's or a pod's name."""
    secure: bool = False
    """Whether it is spoken to over TLS."""

    def __post_init__(self) -> None:
        try:
            # One place must have one spelling: sets of endpoints are merged by address.
            if (address := numeric_address(self.address)) != self.address:
                object.__setattr__(self, "address", address)
            if self.rest is not None:
                object.__setattr__(self, "rest", numeric_address(self.rest))
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        if self.protocol not in PROTOCOLS:
            raise ConfigurationError(
                f"{self.address}: the protocol must be one of {', '.join(PROTOCOLS)}, "
                f"not {self.protocol!r:.60}"
            )
        _within(self.address, "weight", self.weight, 1, LARGEST_WEIGHT)
        _within(self.address, "priority", self.priority, 0, LARGEST_PRIORITY)
        if len(self.name) > _LONGEST_NAME or not self.name.isprintable():
            raise ConfigurationError(
                f"{self.address}: the name must be at most {_LONGEST_NAME} printable characters, "
                f"not {self.name[:60]!r}"
            )


@dataclass(frozen=True, slots=True)
class Traits:
    """What all endpoints of one source have in common; see :class:`Endpoint`."""

    protocol: Protocol = "tidegate"
    rest_port: int | None = None
    """Where each of them answers REST, if on another port."""
    weight: int = 100
    priority: int = 0
    versions: frozenset[int] | None = None
    labels: frozenset[str] | None = None
    secure: bool = False

    def at(self, host: str, port: int, *, name: str = "", weight: int | None = None) -> Endpoint:
        """Return the endpoint at an IP address and a port.

        Raises:
            ConfigurationError: there is no such place.
        """
        return Endpoint(
            address=join_address(host, port),
            protocol=self.protocol,
            rest=None if self.rest_port is None else join_address(host, self.rest_port),
            weight=self.weight if weight is None else weight,
            priority=self.priority,
            versions=self.versions,
            labels=self.labels,
            name=name,
            secure=self.secure,
        )


def _within(address: str, what: str, value: int, least: int, most: int) -> None:
    # A bool is an int to Python, and a mistake here.
    if type(value) is not int or not least <= value <= most:
        raise ConfigurationError(
            f"{address}: the {what} must be a whole number from {least} to {most}, "
            f"not {value!r:.60}"
        )
