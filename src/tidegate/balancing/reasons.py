"""Verdicts in words."""

from __future__ import annotations

from tidegate.balancing.record import Record

HEALTHY = "healthy"
"""What is said of one of which nothing else is to be said."""
_WORTH_SAYING = 0.03


def explain(record: Record, sick: tuple[int, int] | None, now: float) -> str:
    """Say why an endpoint gets what it gets; ``sick`` is how many of how many, in a panic."""
    ejection = record.ejection
    if not record.base:
        return "its configured weight is 0"
    if ejection.out and sick is not None:
        return (
            f"{ejection.why}, but gets calls: {sick[0]} of {sick[1]} endpoints are sick, "
            "too many to do without"
        )
    if ejection.state == "ejected":
        again = f", {_times(ejection.flaps)}" if ejection.flaps > 1 else ""
        return f"ejected for {ejection.length:.1f} s{again}: {ejection.why}"
    if ejection.state == "probing":
        waiting = round(record.awaited)
        answers = f", {waiting} not answered yet" if waiting > 0 else ""
        return f"gets a few calls to see whether it has healed{answers}: {ejection.why}"
    return "; ".join(_parts(record, now)) or HEALTHY


def _parts(record: Record, now: float) -> list[str]:
    parts = []
    ejection = record.ejection
    warmth = ejection.warmth(now)
    if ejection.state == "new":
        share = f": weight {_percent(warmth)}" if warmth < 1 else ""
        parts.append(f"no call has ended yet{share}")
    if ejection.state == "warming":
        left = max(0.0, ejection.warm_from + ejection.ramp - now)
        cause = f"has healed ({ejection.why})" if ejection.flaps else "new"
        parts.append(f"{cause}: weight {_percent(warmth)}, all of it in {left:.1f} s")
    if record.reliability < 1.0 - _WORTH_SAYING / 3:
        parts.append(f"calls failed lately: weight {_percent(record.reliability)}")
    latency, load = record.latency.factor, record.load_factor
    if abs(latency - 1.0) > _WORTH_SAYING:
        times = max(latency, 1.0 / latency)
        word = "faster" if latency > 1.0 else "slower"
        parts.append(f"{times:.1f} x {word} than the median: weight {_percent(latency)}")
    if record.load is not None and abs(load - 1.0) > _WORTH_SAYING:
        word = "less busy" if load > 1.0 else "busier"
        parts.append(
            f"{word} than the median ({record.load:.0%} utilized): weight {_percent(load)}"
        )
    return parts


def _percent(part: float) -> str:
    return f"{100 * part:.3g} %"


def _times(count: int) -> str:
    return {2: "the second time"}.get(count, f"{count} times by now")
