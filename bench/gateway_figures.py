"""What the gateway's cases measured, as sections of the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from bench.verdicts import HEADINGS, rows


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def gateway(told: dict[str, Any]) -> str:
    """Calls per second by proxy, and large messages."""
    one, several = _calls(told["rounds"]), _calls(told["several"])
    sizes = [
        (
            one["proxy"],
            f"{one['at once']}",
            ", ".join(f"{count} {code}" for code, count in one["codes"].items()),
            f"{one['seconds']:.1f}",
            f"{one['MiB before']:.0f}",
            f"{one['MiB at most']:,.0f}",
        )
        for one in told["large"]
    ]
    sizes_head = ("proxy", "messages at once", "outcome", "seconds", "MiB before", "MiB at most")
    return (
        "### The gateway: what a call costs\n\n"
        f"Unary gRPC calls of 600 bytes, {told['load']} in flight, two backends that answer at "
        "once. Each proxy has one core for all its processes and threads; the load and the "
        "backends have the others, and hold up the proxies that leave their core idle. A gateway "
        "of one model does not read the calls:\n\n"
        f"{one}\nOne of several models finds the model's name in each:\n\n{several}\n"
        "Messages of 64 MiB through the gateways, and the memory of their Envoys:\n\n"
        f"{markdown(sizes_head, sizes)}"
    )


def _calls(rounds: dict[str, Any]) -> str:
    """A gateway and the others beside it."""
    subject = next(iter(rounds))
    ours = [one["rate"] for one in rounds[subject]]
    lines = []
    for name, found in rounds.items():
        ratio = statistics.median(a / one["rate"] for a, one in zip(ours, found))
        lines.append(
            (
                f"**{name}**" if name == subject else name,
                f"{_middle(found, 'rate'):,.0f}",
                f"{_middle(found, 'p50'):.2f}",
                f"{_middle(found, 'p99'):.2f}",
                f"{_middle(found, 'cpu'):.1f}",
                f"{statistics.median(one['rate'] * one['cpu'] * 1e-6 for one in found):.0%}",
                "" if name == subject else f"{ratio:.2f}",
            )
        )
    head = ("proxy", "calls/s", "p50 ms", "p99 ms", "CPU µs/call", "of its core",
            "the gateway is faster by")  # fmt: skip
    return markdown(head, lines)


def shares(told: dict[str, Any]) -> str:
    """Unequal backends together."""
    found = told["rounds"]
    slow, fast = _middle(found, "slow"), _middle(found, "fast")
    lines = []
    for name in found[0]["together"]:
        parts = (one["together"][name] / (one["slow"] + one["fast"]) for one in found)
        lines.append(
            (
                "the gateway" if name == "gateway" else name,
                f"{statistics.median(one['together'][name] for one in found):,.0f}",
                f"{statistics.median(parts):.1%}",
                f"1 : {statistics.median(one['ratios'][name] for one in found):.2f}",
                f"{statistics.median(one['p99'][name] for one in found):.0f}",
            )
        )
    head = ("balanced by", "calls/s", "of the sum", "shares", "p99 ms")
    return (
        "### The gateway: a backend and one three times as fast\n\n"
        f"Alone they answer {slow:,.0f} and {fast:,.0f} calls per second, by timers. Together, "
        f"with {told['callers']} callers that wait for their answers:\n\n{markdown(head, lines)}"
    )


def faults(told: dict[str, Any]) -> str:
    """What callers noticed of each fault; the plot is on the page about balancing."""
    where = "in network namespaces" if told["namespaces"] else "processes"
    shown = [
        (f"**{name}**", *(cell.replace("*", "(!)") for cell in cells))
        for name, *cells in rows(told["faults"])
    ]
    return (
        "### The gateway: three backends, one of them sick\n\n"
        f"Open loop, {told['rate']:g} calls per second, Poisson arrivals; each call has a "
        f"deadline of {told['deadline']:g} s and may take {told['per try']:g} s at one endpoint; "
        f"backends ({where}) take {told['service ms']:g} ms. The fault lasts 8 s (the flapping "
        "16 s). *Failed* counts all calls that were not answered; *in flight then* those that the "
        "backend had at the fault; p99 is *normal* at twice what it was before, or 10 ms more.\n\n"
        f"{markdown(HEADINGS, shown)}"
    )


def reload(told: dict[str, Any]) -> str:
    """Many models and endpoints."""
    seconds = [one["seconds"] for one in told["reloads"]]
    cpu = [one["cpu"] for one in told["reloads"]]
    failed = sum(told["failed before"].values()), sum(told["failed in reloads"].values())
    lines = [
        ("ready after the start, s", f"{told['ready after']:.1f}"),
        ("reload, s (median)", f"{statistics.median(seconds):.2f}"),
        ("reload, s (longest)", f"{max(seconds):.2f}"),
        ("controller at rest, of a core", f"{told['controller at rest']:.1%}"),
        ("controller while reloading, of a core", f"{told['controller in reloads']:.1%}"),
        ("controller, CPU seconds for an edit (median)", f"{statistics.median(cpu):.2f}"),
        ("calls", f"{told['calls']:,}"),
        ("failed calls, at rest", f"{failed[0]}"),
        ("failed calls, while reloading", f"{failed[1]}"),
        ("p99 at rest, ms", f"{told['p99 ms before']:.1f}"),
        ("p99 while reloading, ms", f"{told['p99 ms in reloads']:.1f}"),
        ("controller, MiB", f"{told['MiB controller']}"),
        ("edge, MiB", f"{told['MiB edge']}"),
    ]
    return (
        f"### The gateway: {told['models']} models with {told['endpoints']} endpoints each\n\n"
        f"{told['rate']:g} calls per second to all models, deadline {told['deadline']:g} s. "
        f"Each of {len(seconds)} edits of `gateway.yaml` changes the weights of all endpoints, "
        "and a model comes or goes. The time is from the edit to the edge's first answer that is "
        f"another one.\n\n{markdown(('', 'measured'), lines)}"
    )


def _middle(found: Sequence[dict[str, Any]], key: str) -> float:
    return float(statistics.median(one[key] for one in found))
