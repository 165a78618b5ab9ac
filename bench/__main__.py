"""``python -m bench CASE [OPTIONS]``: one of the cases; without one, says which there are."""

from __future__ import annotations

import importlib
import sys

CASES = {
    "overhead": "a tiny MLP against a bare grpc.aio server",
    "saturation": "ResNet-50 and MiniLM against the bare runtime loop and grpc.aio",
    "payload": "4.8 MB of FP32 in every encoding",
    "codecs": "reading and writing tensors against plain libraries",
    "neighbours": "a small model beside a saturated large one",
    "latency": "latency over the offered rate, and the plot of it",
    "many": "twenty small models: time to ready, memory, idle CPU",
    "frameworks": "ResNet-50 on TensorFlow, ONNX Runtime and OpenVINO",
    "faults": "three backends behind the gateway, one of them sick",
    "shares": "a backend and one three times as fast, together behind the gateway",
    "gateway": "the gateway against a bare Envoy, nginx, HAProxy and a Python proxy",
    "reload": "200 models with 100 endpoints each, while gateway.yaml is edited",
    "figures": "puts what the cases measured into the documentation",
}


def main(arguments: list[str]) -> int:
    """Run a case with the options behind its name."""
    if not arguments or arguments[0] not in CASES:
        print("usage: python -m bench CASE [OPTIONS]; see python -m bench CASE --help\n")
        for name, about in CASES.items():
            print(f"  {name:<12} {about}")
        return 2 if arguments and arguments[0] not in ("-h", "--help") else 0
    name, *options = arguments
    sys.argv = [f"python -m bench {name}", *options]
    status: int = importlib.import_module(f"bench.{name}").main()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
