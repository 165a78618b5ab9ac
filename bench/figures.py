"""The figures in the documentation, from what the cases measured.

    python -m bench overhead --json bench/figures/overhead.json     # and so each case
    python -m bench figures

Each case's rounds lie in ``bench/figures/CASE.json``; this writes their medians into the page of
the benchmarks and draws the plot on it.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench import gateway_figures
from bench.gateway_figures import markdown

ROOT = Path(__file__).parent
FOLDER = ROOT / "figures"
PAGE = ROOT.parent / "docs" / "guides" / "benchmarks.md"
IMAGES = ROOT.parent / "docs" / "images"
_BEGIN, _END = "<!-- figures -->\n", "<!-- end of figures -->\n"

_NAMES = {
    "resnet50": "ResNet-50, FP32 224 x 224",
    "minilm": "all-MiniLM-L6-v2, 32 tokens",
    "mlp": "tiny MLP",
}


def _middle(values: Iterable[float]) -> float:
    return statistics.median(values)


def overhead(told: dict[str, Any]) -> str:
    """Calls of the tiny MLP, by server and load."""
    rows = []
    for load, table in told["rounds"].items():
        ours = [one["rate"] for one in table["tidegate serve"]]
        for server, rounds in sorted(table.items(), key=lambda item: -item[1][0]["rate"]):
            ratio = _middle(o / r["rate"] for o, r in zip(ours, rounds))
            rows.append(
                (
                    f"{load}: {server}",
                    f"{_middle(r['rate'] for r in rounds):,.0f}",
                    f"{_middle(r['p50'] for r in rounds):.2f}",
                    f"{_middle(r['p99'] for r in rounds):.2f}",
                    f"{_middle(r['cpu'] for r in rounds):.0f}",
                    "" if server == "tidegate serve" else f"{ratio:.1f}",
                )
            )
    head = ("connections x in flight: server", "calls/s", "p50 ms", "p99 ms", "CPU µs/call",
            "Tidegate is faster by")  # fmt: skip
    return f"### A tiny MLP: what a call costs\n\n{markdown(head, rows)}"


def saturation(told: dict[str, Any]) -> str:
    """Rows per second of real models, and the latency of one."""
    rows = []
    for model in (name for name in _NAMES if name in told):
        found = told[model]
        rounds, best = found["rounds"], found["best batch"]
        for label, key in (
            (f"bare ONNX Runtime, batches of {best}", "bare"),
            ("**Tidegate**, single rows", "tidegate"),
            ("bare grpc.aio, single rows", "grpc_aio"),
        ):
            if not rounds[key]:
                continue
            paced = rounds.get(f"{key}_paced")
            share = _middle(one / bare for one, bare in zip(rounds[key], rounds["bare"]))
            rows.append(
                (
                    f"{_NAMES[model]}: {label}",
                    f"{_middle(rounds[key]):,.1f}",
                    f"{share:.2f}",
                    f"{_middle(rounds[f'{key}_single']):.2f}",
                    f"{_middle(paced):.2f}" if paced else "",
                )
            )
        if spinning := rounds.get("spinning_paced"):
            label = f"{_NAMES[model]}: Tidegate, threads that spin"
            rows.append((label, "", "", "", f"{_middle(spinning):.2f}"))
    head = ("model and server", "rows/s", "of the bare loop", "p50 ms, one at a time",
            "p50 ms, at a tenth of the load")  # fmt: skip
    return f"### Real models, saturated\n\n{markdown(head, rows)}"


def payload(told: dict[str, Any]) -> str:
    """Large tensors by encoding."""
    megabytes = 8 * 3 * 224 * 224 * 4 / 1e6
    rows = []
    for name, rounds in told["rounds"].items():
        model, encoding = name.split()
        rate = _middle(r["rate"] for r in rounds)
        protocol = "gRPC" if encoding in ("raw", "typed") else "REST"
        direction = "one way" if model == "mean" else "both ways"
        rows.append(
            (
                f"{protocol} {encoding}, {direction}",
                f"{rate:,.1f}",
                f"{rate * megabytes:,.0f}",
                f"{_middle(r['p50'] for r in rounds):.1f}",
                f"{_middle(r['cpu'] for r in rounds):.1f}",
            )
        )
    head = ("encoding", "calls/s", "MB/s of tensors", "p50 ms", "CPU ms/call")
    return f"### {megabytes:.1f} MB of FP32 a call\n\n{markdown(head, rows)}"


def neighbours(told: dict[str, Any]) -> str:
    """The small model's latency beside the large one."""
    rows = [
        (f"ResNet-50 is {name}",
         *(f"{_middle(r[key] for r in rounds):.2f}" for key in ("p50", "p99", "p999")),
         f"{_middle(r['large'] for r in rounds):.1f}")
        for name, rounds in told["rounds"].items()
    ]  # fmt: skip
    head = ("tiny MLP, 200 calls/s", "p50 ms", "p99 ms", "p99.9 ms", "ResNet-50 rows/s")
    return f"### A small model beside a large one, two cores\n\n{markdown(head, rows)}"


def many(told: dict[str, Any]) -> str:
    """Time to ready, memory and idle CPU of many models."""
    rows = [
        (kind, str(count), f"{_middle(told['pss_mib'][kind]):.0f}",
         f"{_middle(told['uss_mib'][kind]):.0f}", f"{sum(told['pss_mib'][kind]):,.0f}",
         f"{told['idle_cpu_percent'][kind]:.2f} %")
        for kind, count in told["processes"].items()
    ]  # fmt: skip
    head = ("process", "number", "PSS MiB", "USS MiB", "PSS MiB in all", "CPU in all, of a core")
    return (
        f"### {told['models']} small models on one node, at rest\n\n"
        f"All were ready {told['ready_seconds']:.1f} s after the start.\n\n{markdown(head, rows)}"
    )


def latency(told: dict[str, Any]) -> str:
    """The plot, which :func:`main` draws."""
    return (
        "### Latency over the offered rate\n\n"
        f"The tiny MLP, by gRPC; {told['arrivals']} arrivals, {told['duration']:g} s for each "
        "rate.\n\n![Latency percentiles and throughput over the offered rate]"
        "(../images/latency.svg)\n"
    )


_RUNTIMES = {
    "tensorflow": "TensorFlow",
    "tensorflow-bf16": "TensorFlow, BF16",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
    "openvino-bf16": "OpenVINO, BF16",
}


def frameworks(told: dict[str, Any]) -> str:
    """One network on every runtime, by the number of clients."""
    rows = []
    for clients, table in told["rounds"].items():
        base = table.get("tensorflow")
        for name, rounds in table.items():
            rate = _middle(r["rate"] for r in rounds)
            ratio = rate / _middle(r["rate"] for r in base) if base else None
            rows.append(
                (
                    f"{clients}: {_RUNTIMES[name]}",
                    f"{rate:,.1f}",
                    "" if ratio is None else f"{ratio:.2f}",
                    f"{_middle(r['p50'] for r in rounds):.1f}",
                    f"{_middle(r['p99'] for r in rounds):.1f}",
                    f"{max(r['off by'] for r in rounds):.0e}",
                )
            )
    shares = sorted(r["others"] for t in told["rounds"].values() for rs in t.values() for r in rs)
    versions = ", ".join(
        f"{_RUNTIMES[name]} {told['machine'].get(package, '')}"
        for name, package in (("tensorflow", "tensorflow-cpu"), ("openvino", "openvino"))
    )
    head = ("clients: runtime", "rows/s", "of TensorFlow", "p50 ms", "p99 ms", "off by at most")
    return (
        f"### {_NAMES[told['model']]}, on every runtime\n\n"
        f"{versions}. Others took {_middle(shares):.0%} of the CPU in the median measurement and "
        f"{shares[-1]:.0%} in the worst.\n\n{markdown(head, rows)}"
    )


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "overhead": overhead,
    "saturation": saturation,
    "frameworks": frameworks,
    "payload": payload,
    "neighbours": neighbours,
    "latency": latency,
    "many": many,
    "gateway": gateway_figures.gateway,
    "shares": gateway_figures.shares,
    "faults": gateway_figures.faults,
    "reload": gateway_figures.reload,
}


def load(case: str) -> dict[str, Any] | None:
    """Return what a case measured, if that was kept."""
    path = FOLDER / f"{case}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _machine(cases: Iterable[dict[str, Any]]) -> str:
    machines = [told["machine"] for told in cases if "machine" in told]
    if not machines:
        return ""
    shown = ", ".join(
        f"{k} {v}" for k, v in machines[0].items() if k not in ("load before", "system")
    )
    loads = sorted(float(machine["load before"]) for machine in machines)
    return (
        f"Measured on: {shown}. Figures are medians of the rounds. The load average before the "
        f"cases was {loads[0]:.1f} to {loads[-1]:.1f}: what others did on the machine is in the "
        "figures.\n\n"
    )


def renewed(page: str) -> str:
    """Return ``page`` with the figures as the files have them."""
    told = {case: found for case in _SECTIONS if (found := load(case)) is not None}
    sections = [_SECTIONS[case](found) for case, found in told.items()]
    body = "\n".join(sections)
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{_machine(told.values())}{body}\n{_END}{after}"


def main() -> int:
    """Renew the page and the plots."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    IMAGES.mkdir(exist_ok=True)
    told = load("latency")
    if told is not None:
        from tidegate.load.plot import draw

        title = f"{told['model']}, {told['protocol']} {told['encoding']}"
        draw(IMAGES / "latency.svg", title, told["points"])
    told = load("faults")
    if told is not None:
        from bench.balancing_plot import draw as draw_shares

        draw_shares(IMAGES / "balancing.svg", told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
