"""What the machine, or the container, gives this process."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import psutil

from tidegate.errors import AddressInUse

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")


def usable_cores() -> float:
    """Return the cores that this process may use: its affinity and its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        quota, period = _CPU_MAX.read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else min(cores, int(quota) / int(period))


def usable_memory() -> int:
    """Return the bytes that the machine has, or the container may use."""
    total = int(psutil.virtual_memory().total)
    try:
        limit = _MEMORY_MAX.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def available_memory() -> int:
    """Return the bytes that can be used without swapping."""
    return int(psutil.virtual_memory().available)


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def check_free(host: str, port: int) -> None:
    """Make sure that a port can be listened on.

    Raises:
        AddressInUse: it cannot; the message says who has it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise not_ours(f"{host}:{port}", port, error, "--host or --port") from error


def not_ours(place: str, port: int, error: OSError, instead: str) -> AddressInUse:
    """Return the error for a port that cannot be listened on, with who holds it if known."""
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        state = f"is taken by {holder}" if holder is not None else "is taken"
    else:
        state = "cannot be listened on"
    return AddressInUse(f"{place} {state} ({error.strerror}); choose another {instead}")


def holder_of(port: int) -> str | None:
    """Say which process listens on a TCP port, as far as this user may know."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        local = connection.laddr
        if connection.status == psutil.CONN_LISTEN and local and local.port == port:
            if connection.pid is None:
                return None
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                return None
    return None


def is_from_here(client: Sequence[object] | None, server: Sequence[object] | None) -> bool:
    """Say whether a connection comes from this machine, by the addresses of its two ends.

    Who calls this machine by an address of its own comes from that address.
    """
    if not client or not server:
        return False
    try:
        address = ipaddress.ip_address(str(client[0]))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if address.version == 6 else None
    return client[0] == server[0] or (mapped or address).is_loopback
