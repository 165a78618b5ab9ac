"""The documentation says what the schema says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from bench import figures
from docs import tables
from tests.node.bad_input_table import markdown
from tidegate.config.model import ModelConfig
from tidegate.config.node import NodeConfig
from tidegate.config.origins import fields
from tidegate.telemetry.names import METRICS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_schema(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == tables.renewed(text), "run: python docs/tables.py"


def test_what_bad_input_gets_is_what_is_tested() -> None:
    page = (DOCS / "concepts" / "bad-input.md").read_text(encoding="utf-8")
    assert markdown() in page, "run: python -m tests.node.bad_input_table --markdown"


def test_every_key_is_documented() -> None:
    model = (DOCS / "guides" / "model-repository.md").read_text(encoding="utf-8")
    node = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    for schema, page in ((ModelConfig, model), (NodeConfig, node)):
        keys = [key for key, _ in fields(schema)]
        assert keys
        for key in keys:
            assert f"| `{key}` |" in page


def test_examples_of_model_yaml_are_valid() -> None:
    page = (DOCS / "guides" / "model-repository.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 4
    for example in examples:
        ModelConfig.model_validate(yaml.safe_load(example))


def test_figures_are_those_that_were_measured() -> None:
    page = figures.PAGE.read_text(encoding="utf-8")
    assert page == figures.renewed(page), "run: python -m bench figures"


def test_the_metrics_of_the_examples_exist() -> None:
    """In the queries and alerts, which nothing else would find wrong."""
    page = (DOCS / "guides" / "monitoring.md").read_text(encoding="utf-8")
    known = {metric.name for metric in METRICS}
    known |= {
        metric.name + end
        for metric in METRICS
        if metric.kind == "histogram"
        for end in ("_bucket", "_sum", "_count")
    }
    named = set(re.findall(r"\btidegate_[a-z_]+", page))
    assert len(named) > 30
    assert named <= known
