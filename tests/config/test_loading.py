from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.config.loading import (
    keys_of,
    load_model_config,
    load_model_settings,
    load_node_config,
)
from tidegate.config.model import ModelConfig
from tidegate.config.node import NodeConfig
from tidegate.config.origins import DEFAULT, Origin, value_of
from tidegate.errors import ConfigurationError
from tidegate.types import DType


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.yaml"


def test_everything_has_a_default(file: Path) -> None:
    for text in ("", "# only a comment\n", "---\n", "null\n"):
        file.write_text(text)
        assert load_model_config(file) == ModelConfig()


def test_short_forms(file: Path) -> None:
    file.write_text(
        """
warmup: sample.npz
signature:
  inputs: [{name: x, dtype: float32, shape: [batch, -1, "?", 3]}, y]
  outputs: [z]
"""
    )
    config = load_model_config(file)
    assert (config.warmup.enabled, config.warmup.sample) == (True, "sample.npz")
    x, y = config.signature.inputs
    assert (x.dtype, x.shape) == (DType.FP32, ("batch", None, None, 3))
    assert (y.name, y.dtype, y.shape) == ("y", None, None)
    assert [tensor.name for tensor in config.signature.outputs] == ["z"]
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_a_full_file(file: Path) -> None:
    file.write_text(
        """
runtime: onnx
replicas: 3
device: cuda:1
versions: [1, 4]
warmup: no
batching: {enabled: true, max_batch_size: 8, max_queue_delay: 5ms, max_queue_size: 10}
resources: {cpu: 1.5, memory: 2GiB}
limits: {timeout: 1m}
"""
    )
    config = load_model_config(file)
    assert config.versions.select([1, 2, 3, 4]) == (1, 4)
    assert (config.batching.max_queue_delay, config.resources.memory) == (0.005, 2**31)
    assert (config.limits.timeout, config.warmup.enabled, config.device) == (60.0, False, "cuda:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nreplica: 3", "line 2: replica: unknown key; did you mean 'replicas'?"),
        ("zzz: 1", "zzz: unknown key; known are batching, device,"),
        (
            "batching:\n  max_batchsize: 3",
            "line 2: batching.max_batchsize: unknown key; did you mean 'max_batch_size'?",
        ),
        ("replicas: 0", "line 1: replicas must be greater than or equal to 1, not 0"),
        ("replicas: many", "replicas must be a valid integer, not 'many'"),
        ("replicas: [1]", "replicas must be a valid integer, not a list"),
        ("batching: 3", "batching must be a mapping with some of enabled, max_batch_size"),
        ("batching: {enabled: 7}", "batching.enabled must be a valid boolean or 'auto', not 7"),
        ("versions: {latest: x}", "versions.latest must be a valid integer, not 'x'"),
        ("versions: [a]", "versions must be latest, all, version numbers as [1, 3], or"),
        ("device: gpu", "device must be auto, cpu, cuda or cuda:N, not 'gpu'"),
        ("limits: {timeout: 3 parsecs}", "limits.timeout: '3 parsecs' is not a duration"),
        ("replicas: 1\nreplicas: 2", "line 2: the key 'replicas' was already given in line 1"),
        ("limits:\n  timeout: 1\n  timeout: 2", "line 3: the key 'timeout' was already given"),
        ("- a", "must be a mapping of keys to values, not a list"),
        ("text", "must be a mapping of keys to values, not a str"),
        ("1: 2", "the key 1 is not text"),
        ("a: [", "line 1: not valid YAML"),
        ("a: b: c", "line 1: not valid YAML: mapping values are not allowed here"),
        ("a: !!python/object:os.system x", "line 1: not valid YAML: could not determine"),
        ("a: &a [*a]", "a: unknown key"),
        ("a: 2020-99-99", "not valid YAML"),
        ("warmup: 3", "warmup must be true, false, the name of a file with inputs, or a mapping"),
        ("warmup: ../x.npz", "warmup: '../x.npz' must lie in the model's folder"),
        ("warmup: {sample: /x.npz}", "warmup.sample: '/x.npz' must lie in the model's folder"),
        ("warmup: {samples: x}", "warmup.samples: unknown key; did you mean 'sample'?"),
        ("warmup: {dimensions: {n: 0}}", "warmup.dimensions.n must be greater than 0, not 0"),
        (
            "signature:\n  inputs:\n    - name: x\n      dtpe: FP32",
            "line 4: signature.inputs.0.dtpe: unknown key; did you mean 'dtype'?",
        ),
        (
            "signature: {inputs: [{name: x, dtype: real}]}",
            "signature.inputs.0.dtype: 'real' is no element type; known are BOOL, UINT8,",
        ),
        (
            "signature: {inputs: [{name: x, shape: [-3]}]}",
            "signature.inputs.0.shape.0: -3 is no dimension: write a number, a name",
        ),
        ("signature: {outputs: [a, a]}", "signature: 'a' is there twice"),
        ("signature: {outputs: 3}", "signature.outputs must be"),
        ("trust: all", "trust must be 'pickle', not 'all'"),
        ("precison: bf16", "precison: unknown key; did you mean 'precision'?"),
        ("torch: {chanels_last: true}", "torch.chanels_last: unknown key; did you mean"),
        ("precision: int8", "precision must be 'fp32', 'bf16' or 'fp16', not"),
        ("environment: python:venv/bin/python", "environment: 'python:venv/bin/python' is no env"),
        ("environment: /opt/m/bin/python", "is no environment: write python: and the absolute"),
        ("environment: docker:x", "environment: 'docker:x' is no environment"),
        ("resources: {threads: 0}", "resources.threads must be greater than or equal to 1"),
    ],
)
def test_a_mistake_names_its_place(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_model_config(file)
    assert str(caught.value).startswith(f"{file}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_told_at_once_in_the_order_of_lines(file: Path) -> None:
    file.write_text("batching:\n  max: 3\nreplicas: x\n")
    with pytest.raises(ConfigurationError) as caught:
        load_model_config(file)
    first, second = str(caught.value).split("; " + str(file))
    assert "line 2: batching.max: unknown key" in first
    assert "line 3: replicas must be" in second


def test_files_that_cannot_be_settings(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load_model_config(file)
    file.write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigurationError, match="is not UTF-8 text"):
        load_model_config(file)
    file.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ConfigurationError, match="larger than 1 MiB"):
        load_model_config(file)


@settings(max_examples=200, deadline=None)
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text("abc:-[]{}&*!|>'\"\n #,?%@`0123<", max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from([*ModelConfig.model_fields, "x"]), inner, max_size=3
                )
            ),
            max_leaves=8,
        ).map(repr),
    )
)
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8", errors="replace")
    try:
        load_model_config(file)
    except ConfigurationError as error:
        assert str(error).startswith(str(file))  # noqa: PT017


def test_precedence_and_origins(tmp_path: Path) -> None:
    file = tmp_path / "tidegate.yaml"
    file.write_text("host: 0.0.0.0\nport: 1\nadmin_port: 2\nmax_message_size: 1MiB\n")
    environ = {"TIDEGATE_PORT": "11", "TIDEGATE_ADMIN_PORT": "12", "TIDEGATE_ENVOY_THREADS": ""}
    options = {"admin_port": 22, "drain_timeout": "250ms", "access_log": None}
    config, origins = load_node_config(tmp_path, environ, options)
    assert (config.host, config.port, config.admin_port) == ("0.0.0.0", 11, 22)
    assert (config.max_message_size, config.drain_timeout) == (2**20, 0.25)
    assert config.envoy_threads is None
    assert origins == dict.fromkeys(keys_of(NodeConfig), DEFAULT) | {
        "host": Origin("file", str(file), 1),
        "max_message_size": Origin("file", str(file), 4),
        "port": Origin("environment", "TIDEGATE_PORT"),
        "admin_port": Origin("command line", "--admin-port"),
        "drain_timeout": Origin("command line", "--drain-timeout"),
    }
    assert {str(origins[key]) for key in ("host", "port", "admin_port", "run_dir")} == {
        f"{file}:1",
        "TIDEGATE_PORT",
        "command line (--admin-port)",
        "default",
    }


def test_origins_of_a_model_s_settings(file: Path) -> None:
    file.write_text("# few\nbatching:\n  max_batch_size: 8\n  enabled: auto\nversions: [1, 3]\n")
    config, origins = load_model_settings(file)
    assert config == load_model_config(file)
    assert list(origins) == keys_of(ModelConfig)
    given = {key: str(origin) for key, origin in origins.items() if origin != DEFAULT}
    assert given == {
        "batching.max_batch_size": f"{file}:3",
        "batching.enabled": f"{file}:4",
        "versions.only": f"{file}:5",
    }
    assert value_of(config, "versions.only") == (1, 3)


def test_origins_where_a_file_repeats_itself(file: Path) -> None:
    file.write_text("limits: &l {timeout: 1s}\nbatching:\n  <<: {max_batch_size: 8}\n")
    _, origins = load_model_settings(file)
    assert str(origins["limits.timeout"]) == f"{file}:1"
    assert str(origins["batching.max_batch_size"]) == f"{file}:2"


def test_without_any_source(tmp_path: Path) -> None:
    config, origins = load_node_config(tmp_path, {"PATH": "/bin", "TIDEGATE_DEBUG": "1"}, {})
    assert config == NodeConfig()
    assert set(origins.values()) == {DEFAULT}


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "tidegate.yaml").write_text("envoy: bin/envoy\nrun_dir: /run/tg\n")
    config, _ = load_node_config(tmp_path, {}, {})
    assert config.envoy == tmp_path / "bin/envoy"
    assert config.run_dir == Path("/run/tg")
    assert load_node_config(tmp_path, {}, {"envoy": "e"})[0].envoy == Path("e")


@pytest.mark.parametrize(
    ("environ", "options", "message"),
    [
        ({"TIDEGATE_POTR": "1"}, {}, "TIDEGATE_POTR is unknown; did you mean 'TIDEGATE_PORT'?"),
        ({"TIDEGATE_PORT": "x"}, {}, "TIDEGATE_PORT must be a valid integer, not 'x'"),
        ({}, {"port": 99999}, "--port must be less than or equal to 65535, not 99999"),
        ({}, {"start_timeout": "ages"}, "--start-timeout: 'ages' is not a duration"),
    ],
)
def test_wrong_settings_name_their_source(
    tmp_path: Path, environ: dict[str, str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_node_config(tmp_path, environ, options)
    assert message in str(caught.value)


def test_a_wrong_key_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "tidegate.yaml").write_text("port: 1\nhots: a\n")
    with pytest.raises(ConfigurationError, match=r"line 2: hots: .* did you mean 'host'"):
        load_node_config(tmp_path, {}, {})


def test_variables_that_kubernetes_adds_are_left_alone(tmp_path: Path) -> None:
    environ = {
        "TIDEGATE_SERVICE_HOST": "10.0.0.1",
        "TIDEGATE_SERVICE_PORT_HTTP": "8000",
        "TIDEGATE_PORT": "tcp://10.0.0.1:8000",
        "TIDEGATE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert load_node_config(tmp_path, environ, {})[0] == NodeConfig()
