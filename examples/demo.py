"""Serve the example models, send them real handwriting in five ways and show what comes back.

Run ``scripts/demo``, or ``python -m examples.demo`` from the root of the repository where
``tidegate[onnx,demo]`` is installed. ``--keep`` leaves the server running until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http
from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.train import handwriting
from examples.train.handwriting import Handwriting

REPOSITORY = Path("examples") / "models"
ROOT = Path(__file__).resolve().parents[1]
MODEL = "digits"
HOST = "127.0.0.1"
USUAL_PORTS = (8000, 8002)
START_SECONDS = 120.0
STOP_SECONDS = 60.0
SHOWN = 6
LOWEST_ACCURACY = 0.95
"""Of the default version on held-out data: below this the server has answered wrongly."""
INK = 7
"""How much of 16 counts as a drawn cell where there are no colours."""

Image = npt.NDArray[np.float32]


class DemoError(Exception):
    """The demonstration could not be completed; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said of one image, and the seconds it took there and back.

    ``version`` is empty where the protocol does not tell it.
    """

    digit: int
    confidence: float
    version: str
    seconds: float


Ask = Callable[[Image, str], Answer]
"""Asks for one image [1, 1, 8, 8] of the version named, or of the default one for ``""``."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running ``tidegate serve``."""

    process: subprocess.Popen[bytes]
    command: list[str]
    log: Path
    port: int
    admin_port: int

    @property
    def address(self) -> str:
        """Host and port of all protocols."""
        return f"{HOST}:{self.port}"

    def log_tail(self, lines: int = 30) -> str:
        """Return the last lines of what the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def free_ports() -> tuple[int, int]:
    """Return the usual two ports if both are free, else any two that are."""
    for wanted in (USUAL_PORTS, (0, 0)):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            sockets = [stack.enter_context(socket.socket()) for _ in wanted]
            for listener, port in zip(sockets, wanted, strict=True):
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((HOST, port))
                listener.listen()
            first, second = (s.getsockname()[1] for s in sockets)
            return first, second
    raise DemoError("no free port was found on 127.0.0.1")


@contextlib.contextmanager
def serving(console: Console) -> Iterator[Node]:
    """Run ``tidegate serve examples/models`` until the end of the block, then stop it.

    Raises:
        DemoError: it does not start, or it does not stop with exit status 0.
    """
    port, admin_port = free_ports()
    tidegate = Path(sys.executable).with_name("tidegate")
    if not tidegate.exists():
        raise DemoError(
            f"{tidegate} does not exist: install tidegate[onnx,demo], or run scripts/demo"
        )
    options = ["serve", str(REPOSITORY), "--port", str(port), "--admin-port", str(admin_port)]
    console.print(f"[bold]$[/] tidegate {shlex.join(options)}")
    with tempfile.TemporaryDirectory(prefix="tidegate-demo-") as folder:
        log = Path(folder) / "serve.log"
        with log.open("wb") as output:
            # In a session of its own, so that Ctrl-C reaches only this program, which stops it.
            process = subprocess.Popen(
                [str(tidegate), *options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = Node(process, ["tidegate", *options], log, port, admin_port)
        try:
            wait_until_ready(node, console)
            yield node
        except BaseException as error:
            stop(node)
            if not isinstance(error, KeyboardInterrupt | SystemExit):
                error.add_note(f"--- the end of the server's output ---\n{node.log_tail()}")
            raise
        status = stop(node)
        if status != 0:
            failure = DemoError(f"the server ended with exit status {status} instead of 0")
            failure.add_note(f"--- the end of the server's output ---\n{node.log_tail()}")
            raise failure


def wait_until_ready(node: Node, console: Console) -> None:
    """Return when every model is ready to answer.

    Raises:
        DemoError: the server ended, or was not ready in time.
    """
    started = time.monotonic()
    with console.status("starting the edge, the controller and the replicas"):
        while not is_ready(node):
            if (status := node.process.poll()) is not None:
                raise DemoError(f"the server ended with exit status {status} while it started")
            if time.monotonic() - started > START_SECONDS:
                raise DemoError(f"the server was not ready after {START_SECONDS:.0f} s")
            time.sleep(0.05)
    console.print(f"ready after {time.monotonic() - started:.1f} s\n")


def is_ready(node: Node) -> bool:
    """Ask ``GET /v2/health/ready``."""
    connection = http.client.HTTPConnection(HOST, node.port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stop(node: Node) -> int:
    """Stop the server as an operator would, and return its exit status.

    Raises:
        DemoError: it had to be killed.
    """
    if node.process.poll() is None:
        node.process.send_signal(signal.SIGTERM)
    try:
        return node.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        node.process.kill()
        raise DemoError(f"the server had not stopped {STOP_SECONDS:.0f} s after SIGTERM") from None


def json_body(image: Image) -> str:
    """Return the body of a plain JSON request for ``image``."""
    tensor = {
        "name": "image",
        "shape": list(image.shape),
        "datatype": "FP32",
        "data": [int(ink) for ink in image.ravel()],
    }
    return json.dumps({"inputs": [tensor]}, separators=(",", ":"))


def post(node: Node, path: str, body: str) -> tuple[Any, float]:
    """Send what curl would send; return the JSON that comes back and the seconds it took.

    Raises:
        DemoError: the answer is not 200.
    """
    connection = http.client.HTTPConnection(HOST, node.port, timeout=10)
    started = time.perf_counter()
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    seconds = time.perf_counter() - started
    if response.status != http.HTTPStatus.OK:
        raise DemoError(f"POST {path} was answered with {response.status}: {answer.decode()}")
    return json.loads(answer), seconds


def ask_json(node: Node, image: Image, version: str) -> Answer:
    """Ask in the JSON of the Open Inference Protocol."""
    path = f"/v2/models/{MODEL}" + (f"/versions/{version}" if version else "") + "/infer"
    answer, seconds = post(node, path, json_body(image))
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    digit = int(outputs["digit"][0])
    return Answer(digit, outputs["probabilities"][digit], answer["model_version"], seconds)


def ask_tensorflow(node: Node, image: Image, version: str) -> Answer:
    """Ask as a client of TensorFlow Serving does, whose answers name no version."""
    path = f"/v1/models/{MODEL}" + (f"/versions/{version}" if version else "") + ":predict"
    answer, seconds = post(node, path, json.dumps({"instances": image.tolist()}))
    (row,) = answer["predictions"]
    return Answer(row["digit"], row["probabilities"][row["digit"]], "", seconds)


def ask_seldon(node: Node, image: Image, version: str) -> Answer:
    """Ask as a client of Seldon does, whose messages know no versions."""
    path = f"/seldon/demo/{MODEL}/api/v1.0/predictions"
    answer, seconds = post(node, path, json.dumps({"data": {"ndarray": image.tolist()}}))
    outputs = answer["jsonData"]
    digit = outputs["digit"][0]
    return Answer(digit, outputs["probabilities"][0][digit], "", seconds)


def ask_triton(client: Any, library: Any, image: Image, version: str) -> Answer:
    """Ask through a client of the ``tritonclient`` package, over HTTP or gRPC."""
    tensor = library.InferInput("image", list(image.shape), "FP32")
    tensor.set_data_from_numpy(image)
    started = time.perf_counter()
    result = client.infer(MODEL, [tensor], model_version=version)
    seconds = time.perf_counter() - started
    digit = int(result.as_numpy("digit")[0])
    described = result.get_response()
    described_version = (
        described["model_version"] if isinstance(described, dict) else described.model_version
    )
    confidence = float(result.as_numpy("probabilities")[0, digit])
    return Answer(digit, confidence, described_version, seconds)


@contextlib.contextmanager
def protocols(node: Node) -> Iterator[dict[str, Ask]]:
    """Open a client for each way to ask, by its name."""
    with (
        tritonclient.http.InferenceServerClient(node.address) as rest,
        tritonclient.grpc.InferenceServerClient(
            node.address, channel_args=[("grpc.enable_http_proxy", 0)]
        ) as grpc,
    ):
        yield {
            "V2 REST, JSON": lambda image, version: ask_json(node, image, version),
            "V2 REST, binary": lambda image, version: ask_triton(
                rest, tritonclient.http, image, version
            ),
            "V2 gRPC": lambda image, version: ask_triton(grpc, tritonclient.grpc, image, version),
            "TensorFlow Serving REST": lambda image, version: ask_tensorflow(node, image, version),
            "Seldon REST": lambda image, version: ask_seldon(node, image, version),
        }


def drawing(image: Image, colours: bool) -> Text:
    """Draw an image of 8 x 8 cells with half blocks, 8 characters wide and 4 lines high."""
    text = Text()
    cells = image.reshape(8, 8)
    for upper, lower in zip(cells[::2], cells[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            if colours:
                high, low = (int(255 * ink / 16) for ink in (top, bottom))
                style = f"rgb({high},{high},{high}) on rgb({low},{low},{low})"
                text.append("▀", style)
            else:
                text.append(" ▄▀█"[2 * bool(top >= INK) + bool(bottom >= INK)])
        text.append("\n")
    text.right_crop(1)
    return text


def first_of_each(data: Handwriting, count: int) -> list[int]:
    """Return the places of the first images of ``count`` different digits."""
    _, places = np.unique(data.digits, return_index=True)
    return sorted(int(place) for place in places)[:count]


def show_answers(asks: dict[str, Ask], data: Handwriting, console: Console) -> None:
    """Ask for a few images, each protocol in turn, and print a table of the answers."""
    table = Table(title=f"Handwriting that the model has not seen, answered by {MODEL}")
    for name in ("input", "answer", "confidence", "truth", "version", "protocol", "latency"):
        table.add_column(name, vertical="middle", justify="center")
    for ask in asks.values():
        ask(data.images[:1], "")  # connections are opened before the clock runs
    ways = list(asks.items())
    for row, place in enumerate(first_of_each(data, SHOWN)):
        name, ask = ways[row % len(ways)]
        answer = ask(data.images[place : place + 1], "")
        truth = int(data.digits[place])
        table.add_row(
            drawing(data.images[place], console.color_system is not None),
            Text(str(answer.digit), "bold green" if answer.digit == truth else "bold red"),
            f"{100 * answer.confidence:.1f} %",
            str(truth),
            answer.version or "—",
            name,
            f"{1000 * answer.seconds:.1f} ms",
            end_section=True,
        )
    console.print(table)


def measure(ask: Ask, data: Handwriting, version: str) -> tuple[str, float, list[float]]:
    """Ask for all of ``data``, one by one; return the version, the accuracy, the seconds.

    Raises:
        DemoError: the answers did not all come from one version.
    """
    answers = [ask(data.images[i : i + 1], version) for i in range(len(data))]
    versions = {answer.version for answer in answers}
    if len(versions) != 1 or (version and versions != {version}):
        raise DemoError(f"asked for version {version or '(default)'}, answered by {versions}")
    right = sum(a.digit == truth for a, truth in zip(answers, data.digits, strict=True))
    return versions.pop(), right / len(data), [answer.seconds for answer in answers]


def show_accuracy(ask: Ask, data: Handwriting, console: Console) -> None:
    """Measure version 1 and the default version and print both.

    Raises:
        DemoError: the default version is worse than it was when it was trained.
    """
    console.print(f"\nAccuracy on {len(data)} held-out digits, one gRPC call for each:")
    times: list[float] = []
    for asked, said in (("1", "asked for"), ("", "the default")):
        version, accuracy, seconds = measure(ask, data, asked)
        times += seconds
        console.print(f"  version {version} ({said}): [bold]{100 * accuracy:.1f} %[/]")
    if accuracy < LOWEST_ACCURACY:
        raise DemoError(f"{100 * accuracy:.1f} % is less than {100 * LOWEST_ACCURACY:.0f} %")
    median, slow = (1000 * np.quantile(times, share) for share in (0.5, 0.99))
    console.print(
        f"Latency of these {len(times)} calls: median {median:.2f} ms, 99 % within {slow:.2f} ms"
    )


def show_next(node: Node, data: Handwriting, kept: bool, console: Console) -> None:
    """Print the addresses and what to try next, as lines that can be pasted."""
    model = REPOSITORY / MODEL
    url = f"http://{node.address}/v2/models/{MODEL}"
    console.print(
        f"\n[bold]{'Serving' if kept else 'It was serving'}[/] REST and gRPC on {node.address}, "
        f"the admin API on {HOST}:{node.admin_port}."
    )
    if kept:
        console.print("Try, in another terminal, in this folder:")
    else:
        console.print("[bold]scripts/demo --keep[/] leaves it running. Then, in another terminal:")
    for purpose, line in (
        ("what the model takes and gives", f"curl {url}"),
        ("one digit", f"curl {url}/infer -d '{json_body(data.images[:1])}'"),
        ("what runs", f".venv/bin/tidegate status --port {node.port}"),
        ("a model file, without a server", f".venv/bin/tidegate inspect {model}/2/model.onnx"),
        ("a new version: loaded, warmed and switched to", f"cp -r {model}/1 {model}/3"),
        ("and back", f"rm -r {model}/3"),
    ):
        console.print(f"  [dim]{purpose}[/]")
        console.print(f"    {line}", soft_wrap=True, highlight=False, markup=False)


def demonstrate(keep: bool, console: Console) -> None:
    """Do everything; with ``keep`` wait for Ctrl-C at the end.

    Raises:
        DemoError: anything did not go as it should.
    """
    _, held_out = handwriting.load()
    with serving(console) as node:
        with protocols(node) as asks:
            show_answers(asks, held_out, console)
            show_accuracy(asks["V2 gRPC"], held_out, console)
        show_next(node, held_out, keep, console)
        if keep:
            console.print("\nCtrl-C stops the server.")
            with contextlib.suppress(KeyboardInterrupt):
                node.process.wait()  # until Ctrl-C, or "tidegate stop" from elsewhere
            console.print("stopping")
    console.print("\nThe server drained, stopped every process and ended with exit status 0.")


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that the server is stopped then too."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> NoReturn:
    """Parse the command line, run, and exit with 0 or 1."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the server running")
    arguments = parser.parse_args()
    console = Console(highlight=False)

    try:
        with ending_on_sigterm():
            demonstrate(arguments.keep, console)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        kind = "" if isinstance(error, DemoError) else f"{type(error).__name__}: "
        notes = "\n".join(getattr(error, "__notes__", ()))
        print(f"demo: {kind}{error}\n{notes}".rstrip(), file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
