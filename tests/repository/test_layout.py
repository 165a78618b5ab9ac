from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import models
from tidegate.errors import ConfigurationError
from tidegate.repository.entries import ModelEntry, Problem, Repository
from tidegate.repository.layout import is_model_folder, read_model, scan


@pytest.fixture
def onnx(tmp_path: Path) -> bytes:
    return models.identity(tmp_path / "source" / "m.onnx").read_bytes()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def look(root: Path) -> Repository:
    return scan(root, lambda runtime: True)


def only_problem(entry: ModelEntry) -> Problem:
    assert len(entry.problems) == 1, entry.problems
    return entry.problems[0]


def test_the_three_layouts(root: Path, onnx: bytes) -> None:
    put(root / "numbered/1/model.onnx", onnx)
    put(root / "numbered/12/anything.onnx", onnx)
    put(root / "numbered/model.yaml", "replicas: 3\nversions: all\n")
    put(root / "flat/model.onnx", onnx)
    put(root / "flat/model.yaml", "replicas: 2\n")
    put(root / "bare.v2.onnx", onnx)
    put(root / "tidegate.yaml", "port: 9000\n")
    put(root / "README.md", "# Models\n")
    put(root / "LICENSE", "Do as you like.\n")
    found = look(root)
    assert found.problems == ()
    assert {name: list(m.versions) for name, m in found.models.items()} == {
        "bare.v2": [1],
        "flat": [1],
        "numbered": [1, 12],
    }
    assert found.models["numbered"].config.replicas == 3
    version = found.models["numbered"].versions[12]
    assert version.path == root / "numbered/12/anything.onnx"
    assert (version.version, version.format, version.runtime) == (12, "onnx", "onnx")
    assert not any(m.problems for m in found.models.values())


def test_an_empty_repository_is_no_error(root: Path) -> None:
    assert look(root) == Repository({}, ())


def test_hidden_and_partial_files_do_not_count(root: Path, onnx: bytes) -> None:
    put(root / "m/1/model.onnx", onnx)
    before = look(root)
    for name in (
        ".git/config", ".hidden.onnx", "b.onnx.part", "c.onnx.tmp", "d.onnx~", "__pycache__/e.pyc",
        "m/.3/model.onnx", "m/1/.model.onnx.Xy12", "m/1/other.onnx.part", "m/1/__pycache__/f.onnx",
    ):  # fmt: skip
        put(root / name, onnx)
    after = look(root)
    assert list(after.models) == ["m"]
    assert after.problems == ()
    assert after.models["m"].versions == before.models["m"].versions


@pytest.mark.parametrize(
    ("folder", "suggestion"),
    [("01", "perhaps to 1"), ("v2", "perhaps to 2"), ("0", "perhaps to 1"), ("1.5", "to 1")],
)
def test_version_folders_are_positive_numbers(
    root: Path, onnx: bytes, folder: str, suggestion: str
) -> None:
    put(root / f"m/{folder}/model.onnx", onnx)
    put(root / "good/1/model.onnx", onnx)
    put(root / f"good/{folder}/model.onnx", onnx)
    found = look(root)
    problem = only_problem(found.models["m"])
    assert problem.file == f"m/{folder}"
    assert "positive decimal numbers" in problem.reason
    assert suggestion in problem.hint
    assert problem.kind == "invalid"
    assert found.models["m"].versions == {}
    assert list(found.models["good"].versions) == [1]
    assert only_problem(found.models["good"]).file == f"good/{folder}"


def test_other_folders_beside_versions_are_the_models_own(root: Path, onnx: bytes) -> None:
    put(root / "m/1/model.onnx", onnx)
    put(root / "m/assets/labels.txt", "a\nb\n")
    put(root / "m/hooks.py", "")
    assert look(root).models["m"].problems == ()


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        ("", "hooks.py"),
        ("", "assets/code.py"),
        ("postprocess: {labels: assets/labels.txt}\n", "assets/labels.txt"),
        ("preprocess: {text: {}}\n", "tokenizer.json"),
    ],
)
def test_what_hooks_and_steps_read_belongs_to_every_version(
    root: Path, onnx: bytes, settings: str, file: str
) -> None:
    put(root / "m/1/model.onnx", onnx)
    put(root / "m/model.yaml", settings)
    put(root / f"m/{file}", "x = 1")
    before = look(root).models["m"].versions[1].fingerprint
    put(root / f"m/{file}", "x = 22")
    assert look(root).models["m"].versions[1].fingerprint != before
    (root / "m/hooks.py").touch()
    put(root / "m/anything", "1")
    before = look(root).models["m"].versions[1].fingerprint
    put(root / "m/anything", "22")
    assert look(root).models["m"].versions[1].fingerprint != before


@pytest.mark.parametrize("name", ["my model.onnx", "-m.onnx", "ä.onnx", "a" * 129 + ".onnx"])
def test_names_that_no_model_can_have(root: Path, onnx: bytes, name: str) -> None:
    put(root / name, onnx)
    put(root / "good.onnx", onnx)
    found = look(root)
    assert list(found.models) == ["good"]
    (problem,) = found.problems
    assert problem.file == name
    assert "cannot be a model's name" in problem.reason


def test_two_models_of_one_name(root: Path, onnx: bytes) -> None:
    put(root / "m/1/model.onnx", onnx)
    put(root / "m.onnx", onnx)
    found = look(root)
    assert found.models["m"].versions[1].path == root / "m/1/model.onnx"
    (problem,) = found.problems
    assert problem.file == "m.onnx"
    assert "already a model 'm'" in problem.reason


def test_broken_models_do_not_stop_others(root: Path, onnx: bytes) -> None:
    put(root / "good/1/model.onnx", onnx)
    put(root / "text.onnx", "hello\n")
    put(root / "empty.onnx", b"")
    put(root / "cut/1/model.onnx", onnx[: len(onnx) // 2])
    put(root / "cut/2/model.onnx", onnx)
    (root / "nothing").mkdir()
    (root / "hollow/1").mkdir(parents=True)
    put(root / "config/1/model.onnx", onnx)
    put(root / "config/model.yaml", "replica: 2\n")
    put(root / "several/1/a.onnx", onnx)
    put(root / "several/1/b.onnx", onnx)
    put(root / "docs/guide.txt", "words\n")
    found = look(root)
    reasons = {name: only_problem(m).reason for name, m in found.models.items() if m.problems}
    assert "seems to be text, which begins 'hello'" in reasons["text"]
    assert "is empty" in reasons["empty"]
    assert "cut short" in reasons["cut"]
    assert "is empty" in reasons["nothing"]
    assert "is empty" in reasons["hollow"]
    assert reasons["config"] == "line 1: replica: unknown key; did you mean 'replicas'?"
    assert "several models (a.onnx, b.onnx)" in reasons["several"]
    assert "only guide.txt" in reasons["docs"]
    assert all(only_problem(m).kind == "invalid" for m in found.models.values() if m.problems)
    served = {name: list(m.versions) for name, m in found.models.items() if m.versions}
    assert served == {"good": [1], "cut": [2]}


def test_the_one_called_model_is_chosen_among_several(root: Path, onnx: bytes) -> None:
    put(root / "m/1/encoder.onnx", onnx)
    put(root / "m/1/model.onnx", onnx)
    put(root / "m/1/model.onnx.data", b"\1\2\3")
    put(root / "m/1/labels.txt", "a\n")
    assert look(root).models["m"].versions[1].path.name == "model.onnx"


def test_content_counts_more_than_the_name(root: Path, onnx: bytes) -> None:
    put(root / "m/1/network.bin", onnx)
    put(root / "frozen.pb", onnx)
    put(root / "noending", onnx)
    found = look(root)
    assert {n: m.versions[1].format for n, m in found.models.items()} == {
        "m": "onnx",
        "frozen": "onnx",
        "noending": "onnx",
    }


def test_the_names_that_triton_gives_tensorflow_models(root: Path) -> None:
    # The first fields of a SavedModel, and a graph of three nodes.
    put(root / "a/1/model.savedmodel/saved_model.pb", b"\x08\x01\x12\x02\0\0")
    put(root / "b/1/model.graphdef", b"\x0a\x03\x0a\x01x" * 3)
    put(root / "c/1/model.pb", b"\x0a\x03\x0a\x01x" * 3 + b"\x22\x02\x08\x1b")
    found = {name: entry.versions[1] for name, entry in look(root).models.items()}
    assert {name: version.format for name, version in found.items()} == {
        "a": "savedmodel",
        "b": "frozen-graph",
        "c": "frozen-graph",
    }
    assert found["a"].path == root / "a/1/model.savedmodel"


def test_libraries_of_operators_belong_to_every_version(root: Path) -> None:
    put(root / "m/1/saved_model.pb", b"\x08\x01\x12\x02\0\0")
    put(root / "m/ops/own.so", b"one")
    put(root / "m/model.yaml", "tensorflow: {libraries: [ops/own.so]}\n")
    before = look(root).models["m"].versions[1].fingerprint
    put(root / "m/ops/own.so", b"other")
    assert look(root).models["m"].versions[1].fingerprint != before


def test_a_format_without_a_runtime_is_skipped_and_says_so(root: Path) -> None:
    put(root / "lite.tflite", b"\x1c\0\0\0TFL3" + b"\0" * 64)
    entry = look(root).models["lite"]
    problem = only_problem(entry)
    assert problem.kind == "skipped"
    assert "not served by this version of Tidegate" in problem.reason
    assert "pip install" not in problem.hint
    assert entry.versions == {}


def test_a_runtime_that_is_not_installed_names_the_command(root: Path, onnx: bytes) -> None:
    put(root / "m.onnx", onnx)
    problem = only_problem(scan(root, lambda runtime: False).models["m"])
    assert problem.kind == "skipped"
    assert "pip install 'tidegate[onnx]'" in problem.hint


def test_runtimes_named_in_the_settings(root: Path, onnx: bytes) -> None:
    put(root / "m/1/model.onnx", onnx)
    put(root / "m/model.yaml", "runtime: onxx\n")
    problem = only_problem(look(root).models["m"])
    assert "did you mean 'onnx'?" in problem.reason


def test_versions_that_are_asked_for_but_missing(root: Path, onnx: bytes) -> None:
    put(root / "m/1/model.onnx", onnx)
    put(root / "m/model.yaml", "versions: [1, 4]\n")
    entry = look(root).models["m"]
    assert list(entry.versions) == [1]
    assert "version 4, which does not exist" in only_problem(entry).reason


def test_links(root: Path, onnx: bytes, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside/model.onnx", onnx)
    put(root / "store/1/model.onnx", onnx)
    (root / "inside").mkdir()
    (root / "inside/1").symlink_to(root / "store/1")
    (root / "alias").symlink_to("store")
    (root / "leaves/1").mkdir(parents=True)
    (root / "leaves/1/model.onnx").symlink_to(outside)
    put(root / "leaves/2/model.onnx", onnx)
    (root / "top.onnx").symlink_to(outside)
    (root / "broken.onnx").symlink_to("nowhere")
    (root / "circle/1").mkdir(parents=True)
    (root / "circle/1/model.onnx").symlink_to("model.onnx")
    (root / "store/1/up").symlink_to("..")
    found = look(root)
    served = {name: list(m.versions) for name, m in found.models.items() if m.versions}
    assert served == {"inside": [1], "store": [1], "alias": [1], "leaves": [2]}
    assert "outside of the repository" in only_problem(found.models["leaves"]).reason
    assert "cannot be followed" in only_problem(found.models["circle"]).reason
    assert {p.file: p.reason.split()[0] for p in found.problems} == {
        "top.onnx": "leads",
        "broken.onnx": "is",
    }


def test_pipes_are_not_waited_for(root: Path, onnx: bytes) -> None:
    put(root / "m" / "1" / "model.onnx", onnx)
    for pipe in ("m/model.yaml", "bare.onnx", "noext"):
        os.mkfifo(root / pipe)
    (root / "folder" / "1").mkdir(parents=True)
    os.mkfifo(root / "folder" / "1" / "model.onnx")
    found = scan(root).models
    assert {name: not entry.problems for name, entry in found.items()} == dict.fromkeys(
        ("bare", "folder", "m"), False
    )
    assert "is a pipe" in str(found["bare"].problems[0])


def test_a_root_that_is_itself_a_link(root: Path, onnx: bytes, tmp_path: Path) -> None:
    put(root / "m/1/model.onnx", onnx)
    (tmp_path / "link").symlink_to(root)
    assert list(look(tmp_path / "link").models["m"].versions) == [1]


def test_a_missing_root_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"does not exist; create it with 'mkdir -p"):
        scan(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="is a file"):
        scan(put(tmp_path / "file", b""))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read(root: Path, onnx: bytes) -> None:
    put(root / "good/1/model.onnx", onnx)
    put(root / "secret/1/model.onnx", onnx).chmod(0)
    put(root / "closed/1/model.onnx", onnx)
    (root / "closed/1").chmod(0)
    try:
        found = look(root)
    finally:
        (root / "closed/1").chmod(0o700)
    assert list(found.models["good"].versions) == [1]
    for name in ("secret", "closed"):
        assert "cannot be read: Permission denied" in only_problem(found.models[name]).reason


def _touch_weights(root: Path) -> None:
    os.utime(root / "m/1/weights.bin", ns=(1, 1))


def _replace_model(root: Path) -> None:
    (root / "m/1/model.onnx").write_bytes((root / "m/1/model.onnx").read_bytes() + b"\x0a\0")


def _settings(root: Path) -> None:
    status = (root / "m/model.yaml").stat()
    (root / "m/model.yaml").write_text("replicas: 2\n")
    os.utime(root / "m/model.yaml", ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "versions"), [(_touch_weights, [1]), (_replace_model, [1]), (_settings, [1, 2])]
)
def test_fingerprints_follow_changes(
    root: Path, onnx: bytes, change: Callable[[Path], None], versions: list[int]
) -> None:
    put(root / "m/1/model.onnx", onnx)
    put(root / "m/1/weights.bin", b"123")
    put(root / "m/2/model.onnx", onnx)
    put(root / "m/model.yaml", "replicas: 1\n")
    before = look(root).models["m"]
    assert look(root).models["m"] == before
    change(root)
    after = look(root).models["m"]
    changed = [
        v for v in (1, 2) if before.versions[v].fingerprint != after.versions[v].fingerprint
    ]
    assert changed == versions
    assert after.fingerprint != before.fingerprint


def test_weights_beside_a_bare_file_count(root: Path, onnx: bytes) -> None:
    put(root / "m.onnx", onnx)
    data = put(root / "m.onnx.data", b"1")
    before = look(root)
    data.write_bytes(b"22")
    after = look(root)
    assert list(after.models) == ["m"]
    assert before.models["m"].versions[1].fingerprint != after.models["m"].versions[1].fingerprint


def test_one_model_by_itself(root: Path, onnx: bytes) -> None:
    put(root / "m/1/model.onnx", onnx)
    put(root / "flat/model.onnx", onnx)
    put(root / "a.onnx", onnx)
    assert read_model(root / "m").name == "m"
    assert list(read_model(root / "m").versions) == [1]
    assert read_model(root / "a.onnx").name == "a"
    assert is_model_folder(root / "m")
    assert is_model_folder(root / "flat")
    assert not is_model_folder(root)
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_model(root / "nothing")


def test_a_version_that_goes_while_it_is_read(root: Path, onnx: bytes) -> None:
    put(root / "m/1/model.onnx", onnx)
    put(root / "m/2/model.onnx", onnx)

    def remove(runtime: str) -> bool:
        shutil.rmtree(root / "m/2", ignore_errors=True)
        return True

    assert list(scan(root, remove).models["m"].versions) == [1]


def torch_file(*names: str) -> bytes:
    """An archive as torch.save writes it, whose pickle imports these."""
    buffer = io.BytesIO()
    data = b"".join(b"c" + name.replace(".", "\n").encode() + b"\n0" for name in names)
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02" + data + b"N.")
    return buffer.getvalue()


def test_a_runtime_that_is_not_installed_names_its_command(root: Path) -> None:
    put(root / "m/model.pth", torch_file("collections.OrderedDict"))
    entry = scan(root, lambda runtime: runtime != "torch").models["m"]
    problem = only_problem(entry)
    assert problem.kind == "skipped"
    assert "m/model.pth is a file of PyTorch weights (a state_dict), whose runtime torch" in str(
        problem
    )
    assert "pip install 'tidegate[torch]'" in problem.hint
    # What another interpreter has, is seen when it is started.
    put(root / "m/model.yaml", "environment: python:/opt/m/bin/python\n")
    assert not scan(root, lambda runtime: False).models["m"].problems


def test_a_pickle_of_more_than_weights_needs_trust(root: Path) -> None:
    put(root / "m/model.pth", torch_file("net.Net"))
    problem = only_problem(look(root).models["m"])
    assert problem.kind == "invalid"
    assert "it calls net.Net" in problem.reason
    assert "trust: pickle" in problem.hint
    put(root / "m/model.yaml", "trust: pickle\n")
    entry = look(root).models["m"]
    assert entry.problems == ()
    assert (entry.versions[1].format, entry.versions[1].runtime) == ("torch-pickle", "torch")


def test_a_task_has_one_model(root: Path, onnx: bytes) -> None:
    for name in ("a", "b"):
        put(root / f"{name}/model.onnx", onnx)
        put(
            root / f"{name}/model.yaml",
            "task_ids: [69, 7]\n" if name == "a" else "task_ids: [69]\n",
        )
    found = look(root)
    assert [entry.problems for entry in found.models.values()] == [(), ()]
    (problem,) = found.problems
    assert str(problem).startswith("b/model.yaml: the task 69 is that of 'a' already")


def test_options_of_another_runtime_are_a_mistake(root: Path, onnx: bytes) -> None:
    put(root / "m/model.onnx", onnx)
    put(root / "m/model.yaml", "torch: {compile: true}\n")
    problem = only_problem(look(root).models["m"])
    assert "options under torch, but model.onnx is an ONNX model" in str(problem)
    put(root / "m/model.yaml", "onnx: {spin: 30ms}\n")
    assert look(root).models["m"].problems == ()


def test_code_and_samples_belong_to_every_version(root: Path, onnx: bytes) -> None:
    for version in ("1", "2"):
        put(root / f"m/{version}/model.onnx", onnx)
    put(root / "m/model.yaml", "versions: all\n")
    put(root / "m/notes.txt", "none of its business")
    seen = set()
    for name, text in (("", ""), ("model.py", "a"), ("model.py", "bc"), ("sample.npz", "d")):
        if name:
            put(root / "m" / name, text)
        versions = look(root).models["m"].versions
        assert {entry.folder for entry in versions.values()} == {root / "m"}
        seen.add(tuple(entry.fingerprint for entry in versions.values()))
    assert len(seen) == 4
    put(root / "m/notes.txt", "nor now")
    assert tuple(e.fingerprint for e in look(root).models["m"].versions.values()) in seen


def test_code_may_not_lead_out_of_the_repository(root: Path, onnx: bytes, tmp_path: Path) -> None:
    put(root / "m/1/model.onnx", onnx)
    (root / "m/model.py").symlink_to(put(tmp_path / "elsewhere.py", "code"))
    assert "outside of the repository" in str(only_problem(look(root).models["m"]))


def test_a_bare_file_has_no_folder(root: Path, onnx: bytes) -> None:
    put(root / "m.onnx", onnx)
    put(root / "model.py", "nobody's")
    assert look(root).models["m"].versions[1].folder is None
