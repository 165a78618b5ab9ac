"""What a replica says of how busy it is, as Envoy reads it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.protocols.load_reports import LARGEST, callers_own, encode_report


@pytest.mark.parametrize(
    ("utilization", "text"),
    [
        (0.0, b"TEXT application_utilization=0.000"),
        (0.42, b"TEXT application_utilization=0.420"),
        (1.7554, b"TEXT application_utilization=1.755"),
        (1e9, b"TEXT application_utilization=1000.000"),
    ],
)
def test_a_report_is_one_metric_in_the_text_format(utilization: float, text: bytes) -> None:
    assert encode_report(utilization) == text


@given(st.floats())
def test_whatever_number_becomes_one_that_envoy_takes(utilization: float) -> None:
    match = re.fullmatch(
        rb"TEXT application_utilization=([0-9]+\.[0-9]{3})", encode_report(utilization)
    )
    assert match is not None
    assert 0 <= float(match[1]) <= LARGEST


@pytest.mark.parametrize(
    ("status", "grpc_status", "told"),
    [(200, b"0", False), (200, b"3", False), (200, b"12", True), (500, b"13", False)],
)
def test_what_is_not_offered_is_told_to_be_the_callers(
    status: int, grpc_status: bytes, told: bool
) -> None:
    report = encode_report(0.5)
    found = callers_own(report, status, [(b"grpc-status", grpc_status)])
    assert found == (report + b",named_metrics.callers=1" if told else report)
    assert callers_own(report, 501, []) == report + b",named_metrics.callers=1"
