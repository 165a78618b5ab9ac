from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.config.nodefile import NodefileTask, parse_nodefile
from tidegate.errors import ConfigurationError

# Its own example, from the repository of dl_inference: each line has a task, a timeout and nodes.
EXAMPLE = b"""\
# tasks of the search team
100=100,172.16.71.188:8888,172.16.71.188:8866

69=1500,172.16.71.187:8866
"""


def read(text: str | bytes) -> tuple[NodefileTask, ...]:
    return parse_nodefile(text.encode() if isinstance(text, str) else text, "nodefile.txt")


def test_tasks_timeouts_and_addresses() -> None:
    assert read(EXAMPLE) == (
        NodefileTask("100", 0.1, ("172.16.71.188:8888", "172.16.71.188:8866"), 2),
        NodefileTask("69", 1.5, ("172.16.71.187:8866",), 4),
    )


@pytest.mark.parametrize(
    "text",
    [
        "69=100,10.0.0.7:8500",
        "\ufeff69=100,10.0.0.7:8500\r\n",
        "  69 = 100 , 10.0.0.7:8500 ,\n",
        "069=100,10.0.0.7:08500 # the old machine",
        "\n\n#69=1\n69=100,10.0.0.7:8500\r\r",
    ],
)
def test_what_is_written_in_many_ways(text: str) -> None:
    (task,) = read(text)
    assert (task.task, task.timeout, task.addresses) == ("69", 0.1, ("10.0.0.7:8500",))


def test_names_and_ipv6() -> None:
    (task,) = read("69=100,GPU-1.example.com:8500,[FD00::7]:8500")
    assert task.addresses == ("gpu-1.example.com:8500", "[fd00::7]:8500")


@pytest.mark.parametrize("text", ["# none", "\n", "  \n#\n"])
def test_a_file_of_comments_has_no_tasks(text: str) -> None:
    assert read(text) == ()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("69", "'69' has no '='"),
        ("10.0.0.7:8500", "has no '='"),
        ("=100,10.0.0.7:8500", "the task '' is not a whole number"),
        ("resnet=100,10.0.0.7:8500", "the task 'resnet' is not a whole number"),
        ("-1=100,10.0.0.7:8500", "the task '-1'"),
        ("9999999999999999999=100,10.0.0.7:8500", "the task"),
        ("69=,10.0.0.7:8500", "the timeout '' of task 69"),
        ("69=0,10.0.0.7:8500", "the timeout '0' of task 69 must be milliseconds from 1"),
        ("69=-5,10.0.0.7:8500", "the timeout '-5'"),
        ("69=1.5,10.0.0.7:8500", "the timeout '1.5'"),
        ("69=2147483648,10.0.0.7:8500", "the timeout '2147483648'"),
        ("69=10.0.0.7:8500", "the timeout '10.0.0.7:8500'"),
        ("69=100", "the task 69 has no address"),
        ("69=100,", "the task 69 has no address"),
        ("69=100,10.0.0.7", "'10.0.0.7' has no port"),
        ("69=100,10.0.0.7:0", "the port must be a number from 1 to 65535"),
        ("69=100,10.0.0.7:99999", "the port must be a number from 1 to 65535"),
        ("69=100,10.0.0.7:grpc", "the port must be a number from 1 to 65535"),
        ("69=100,10.0.0.256:8500", "holds no IP address"),
        ("69=100,fd00::7:8500", "brackets"),
        ("69=100,[gpu-1]:8500", "no name of a host"),
        ("69=100,10.0.0.7:8500,,10.0.0.8:8500", "'' has no port"),
        ("69=100,10.0.0.7:8500,10.0.0.7:08500", "has the address '10.0.0.7:8500' twice"),
        ("69=100,10.0.0.7:8500;10.0.0.8:8500", "'10.0.0.7:8500;10.0.0.8:8500'"),
        ("69=100=200,10.0.0.7:8500", "the timeout '100=200'"),
        ("69=100,gpu 1:8500", "no name of a host"),
    ],
)
def test_each_mistake_names_file_line_and_value(line: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(f"# first\n{line}\n")
    assert str(caught.value).startswith("nodefile.txt, line 2: ")
    assert says in str(caught.value)


def test_a_task_that_is_there_twice() -> None:
    with pytest.raises(
        ConfigurationError, match=r"line 3: the task 69 was already given in l.* 1"
    ):
        read("69=1,10.0.0.7:1\n\n069=1,10.0.0.8:1")


def test_several_mistakes_are_told_at_once_but_not_all() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("x\n" * 100_000)
    assert str(caught.value).count("has no '='") == 5
    assert str(caught.value).endswith("; and more")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\x7fELF\x02\x01\xff\xfe", "is not UTF-8 text"),
        (b"69=100,10.0.0.7:8500\0", "byte 0 at 20"),
        (b"6" * (4 * 2**20 + 1), "larger than 4 MiB"),
        (b"6" * (4 * 2**20), "has no '='"),
        (b"69=100" + b",10.0.0.7:1" * 10_001, "more than 10000 addresses"),
        ("69=100,10.0.0.7:8500".encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_what_is_no_nodefile(content: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        read(content)
    assert len(str(caught.value)) < 400


def test_a_large_one_is_read() -> None:
    nodes = ",".join(f"10.{n >> 8}.{n & 255}.1:8500" for n in range(1000))
    tasks = read("\n".join(f"{n}=100,{nodes}" for n in range(100)))
    assert len(tasks) == 100
    assert len(tasks[99].addresses) == 1000


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_content_is_tasks_or_a_short_error(content: bytes) -> None:
    try:
        read(content)
    except ConfigurationError as error:
        assert str(error).startswith("nodefile.txt")  # noqa: PT017 - either outcome is right


TASKS = st.dictionaries(
    st.integers(0, 10**18 - 1).map(str),
    st.tuples(
        st.integers(1, 2**31 - 1),
        st.lists(
            st.tuples(st.ip_addresses(v=4), st.integers(1, 65535)),
            min_size=1,
            max_size=5,
            unique=True,
        ),
    ),
    min_size=1,
)


@given(TASKS, st.sampled_from(["\n", "\r\n", "\n# x\n\n"]))
def test_what_is_written_is_read_again(
    tasks: dict[str, tuple[int, list[tuple[object, int]]]], end: str
) -> None:
    def usable(ip: object) -> bool:
        return not (ip.is_multicast or ip.is_unspecified or str(ip) == "255.255.255.255")  # type: ignore[attr-defined]

    text = ""
    expected = {}
    for task, (timeout, places) in tasks.items():
        addresses = [f"{ip}:{port}" for ip, port in places if usable(ip)] or ["10.0.0.7:1"]
        expected[task] = (timeout / 1000, tuple(addresses))
        text += f"{task}={timeout},{','.join(addresses)}{end}"
    assert {t.task: (t.timeout, t.addresses) for t in read(text)} == expected
