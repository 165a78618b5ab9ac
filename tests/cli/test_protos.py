from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import tidegate


def test_clients_can_be_generated_from_the_files(tmp_path: Path) -> None:
    done = tidegate("protos", str(tmp_path / "new/protos"))
    assert done.returncode == 0
    files = [Path(line) for line in done.stdout.decode().splitlines()]
    assert {"wpai.proto", "seldon.proto", "open_inference.proto"} <= {file.name for file in files}
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc"),
            *(f"--proto_path={files[0].parent}", f"--python_out={tmp_path}"),
            *(f"--grpc_python_out={tmp_path}", *(file.name for file in files)),
        ],
        check=True,
    )
    assert "PytorchPredict" in (tmp_path / "wpai_pb2_grpc.py").read_text()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = tidegate("protos", str(tmp_path / "file"))
    assert done.returncode == 78
    assert b"name another folder" in done.stderr
