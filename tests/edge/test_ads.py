"""The discovery protocol's state machine, against a model of Envoy and every order of events."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.edge.ads import (
    CLUSTERS,
    ENDPOINTS,
    LISTENERS,
    ROUTES,
    RUNTIME,
    SECRETS,
    TYPES,
    Session,
    Snapshot,
)
from tidegate.edge.names import ENDPOINTS_CA as CA
from tidegate.edge.names import SERVER_CERTIFICATE as CERTIFICATE

Request: TypeAlias = discovery_pb2.DiscoveryRequest
Response: TypeAlias = discovery_pb2.DiscoveryResponse


def resource(kind: str, name: str, content: str) -> any_pb2.Any:
    return any_pb2.Any(type_url=kind, value=f"{name}={content}".encode())


def snapshot(models: Iterable[str], version: int = 0, poison: str = "") -> Snapshot:
    """Clusters with endpoints of a version; the routes need exactly those clusters.

    All clusters speak TLS with one authority, and the listener has a certificate.
    """
    models = sorted(models)
    marks = {kind: "!" if poison == kind else "" for kind in TYPES}
    secrets = [CERTIFICATE, CA] if models else [CERTIFICATE]
    return Snapshot(
        {
            CLUSTERS: {
                "static": resource(CLUSTERS, "static", "x"),
                **{m: resource(CLUSTERS, m, f"{version // 3}{marks[CLUSTERS]}") for m in models},
            },
            ENDPOINTS: {m: resource(ENDPOINTS, m, f"{version}{marks[ENDPOINTS]}") for m in models},
            LISTENERS: {"l": resource(LISTENERS, "l", f"{version // 2}{marks[LISTENERS]}")},
            ROUTES: {"r": resource(ROUTES, "r", ",".join(models) + marks[ROUTES])},
            SECRETS: {n: resource(SECRETS, n, f"{version}{marks[SECRETS]}") for n in secrets},
            RUNTIME: {"rt": resource(RUNTIME, "rt", f"{version // 2}{marks[RUNTIME]}")},
        }
    )


class FakeEnvoy:
    """As Envoy behaves: warms clusters, then asks for listeners, then for routes."""

    def __init__(self) -> None:
        self.out: deque[Request] = deque()
        self.nonces: dict[str, str] = {}
        self.names: dict[str, list[str]] = {}
        self.clusters: dict[str, str] = {}
        self.endpoints: dict[str, str] = {}
        self.warming: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self.listener = self.routes = ""
        self.runtime = ""
        self.refused = 0
        self.subscribe(RUNTIME, ["rt"])
        self.subscribe(CLUSTERS, [])

    def subscribe(self, kind: str, names: list[str], error: str = "") -> None:
        self.names[kind] = names
        request = Request(
            type_url=kind, resource_names=names, response_nonce=self.nonces.get(kind, "")
        )
        if error:
            request.error_detail.message = error
        self.out.append(request)

    def receive(self, response: Response) -> None:
        kind = response.type_url
        self.nonces[kind] = response.nonce
        content = dict(r.value.decode().split("=") for r in response.resources)
        if any("!" in text for text in content.values()):
            self.refused += 1
            return self.subscribe(kind, self.names[kind], f"refused {kind}")
        getattr(self, "take_" + kind.rsplit(".", 1)[1].lower())(content)
        return None

    def take_runtime(self, content: dict[str, str]) -> None:
        self.runtime = content["rt"]
        self.subscribe(RUNTIME, ["rt"])

    def take_cluster(self, content: dict[str, str]) -> None:
        latest = {**self.clusters, **self.warming}
        changed = [n for n, text in content.items() if latest.get(n) != text]
        for name in changed:
            if name == "static":
                self.clusters[name] = content[name]
            else:
                self.warming[name] = content[name]
        for name in [n for n in {*self.clusters, *self.warming} if n not in content]:
            self.clusters.pop(name, None)
            self.warming.pop(name, None)
            self.endpoints.pop(name, None)
        self.subscribe(CLUSTERS, [])
        names = sorted({*self.clusters, *self.warming} - {"static"})
        if not names and CA in self.names.get(SECRETS, []):
            self.secrets.pop(CA, None)
            self.need_secrets()
        if names != self.names.get(ENDPOINTS, []) or self.warming:
            self.subscribe(ENDPOINTS, names)
        self.go_on()

    def take_clusterloadassignment(self, content: dict[str, str]) -> None:
        for name, text in content.items():
            if name in self.clusters or name in self.warming:
                self.endpoints[name] = text
        self.subscribe(ENDPOINTS, self.names[ENDPOINTS])
        if self.warming and CA not in self.names.get(SECRETS, []):
            self.need_secrets()
        self.warm_up()

    def take_secret(self, content: dict[str, str]) -> None:
        self.secrets.update(content)
        self.subscribe(SECRETS, self.names[SECRETS])
        self.warm_up()

    def need_secrets(self) -> None:
        needed = [CA] if any(n != "static" for n in (*self.clusters, *self.warming)) else []
        if self.listener:
            needed.append(CERTIFICATE)
        self.subscribe(SECRETS, needed)

    def warm_up(self) -> None:
        for name in [n for n in self.warming if n in self.endpoints and CA in self.secrets]:
            self.clusters[name] = self.warming.pop(name)
        self.go_on()

    def take_listener(self, content: dict[str, str]) -> None:
        self.listener = content["l"]
        self.subscribe(LISTENERS, [])
        if CERTIFICATE not in self.names.get(SECRETS, []):
            self.need_secrets()
        if ROUTES not in self.names:
            self.subscribe(ROUTES, ["r"])

    def take_routeconfiguration(self, content: dict[str, str]) -> None:
        self.routes = content["r"]
        self.subscribe(ROUTES, ["r"])

    def go_on(self) -> None:
        if not self.warming and LISTENERS not in self.names:
            self.subscribe(LISTENERS, [])

    def check(self) -> None:
        """Whatever a route leads to is there and warm."""
        for name in filter(None, self.routes.split(",")):
            assert name in self.clusters, f"a route to {name}, which is not there"
            assert name in self.endpoints, f"a route to {name}, which has no endpoints"


class Wire:
    """Both ends and what is on its way between them."""

    def __init__(self) -> None:
        self.envoy = FakeEnvoy()
        self.session = Session()
        self.to_envoy: deque[Response] = deque()
        self.said: list[str] = []
        self.target: Snapshot | None = None
        self.accepted: Snapshot | None = None

    def publish(self, target: Snapshot) -> None:
        self.target = target
        self.to_envoy.extend(self.session.set_target(target))

    def step(self, to_envoy: bool) -> bool:
        if to_envoy and self.to_envoy:
            self.envoy.receive(self.to_envoy.popleft())
            self.envoy.check()
        elif self.envoy.out:
            self.to_envoy.extend(self.session.on_request(self.envoy.out.popleft()))
            words = self.session.take_rejection()
            if words:
                self.said.append(words)
            if self.session.settled:
                self.accepted = self.target
        else:
            return False
        return True

    def settled(self) -> bool:
        return self.session.settled

    def run(self) -> None:
        for _ in range(2000):
            if not self.step(True) and not self.step(False):
                return
        raise AssertionError("the two never come to rest")

    def reconnect(self) -> None:
        """The stream breaks: Envoy keeps what it has and asks for everything anew."""
        self.session = Session(self.accepted)
        self.to_envoy.clear()
        self.envoy.out.clear()
        self.envoy.nonces.clear()
        for kind, names in list(self.envoy.names.items()):
            self.envoy.subscribe(kind, names)

    def holds(self, target: Snapshot) -> bool:
        def text(kind: str) -> dict[str, str]:
            return {n: r.value.decode().split("=")[1] for n, r in target.resources[kind].items()}

        envoy = self.envoy
        return (
            envoy.clusters == text(CLUSTERS)
            and not envoy.warming
            and envoy.endpoints == text(ENDPOINTS)
            and envoy.listener == text(LISTENERS)["l"]
            and envoy.runtime == text(RUNTIME)["rt"]
            and envoy.routes == text(ROUTES)["r"]
            and envoy.secrets == text(SECRETS)
        )


MODELS = st.sets(st.sampled_from("abcd"), max_size=4)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), MODELS, st.integers(0, 5)),
        st.tuples(st.just("step"), st.booleans()),
        st.tuples(st.just("reconnect")),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(EVENTS, MODELS)
def test_whatever_happens_routes_lead_somewhere_and_all_settles(
    events: list[tuple[object, ...]], last: set[str]
) -> None:
    wire = Wire()
    target = None
    silent = True
    for event in events:
        if event[0] == "publish":
            target = snapshot(event[1], event[2])  # type: ignore[arg-type]
            wire.publish(target)
            silent = False
        elif event[0] == "step":
            wire.step(bool(event[1]))
        else:
            wire.run()  # what Envoy accepts while the stream breaks is not known
            wire.reconnect()
            if target is not None:
                wire.publish(target)
        if silent:
            assert not wire.to_envoy
    target = snapshot(last, 4)
    wire.publish(target)
    wire.run()
    assert wire.holds(target)
    assert wire.settled()
    assert wire.said == []


@settings(max_examples=200, deadline=None)
@given(
    MODELS,
    MODELS,
    st.sampled_from(TYPES),
    st.lists(st.booleans(), max_size=30),
)
def test_a_refusal_is_reported_and_the_next_target_heals_it(
    before: set[str], after: set[str], poison: str, steps: list[bool]
) -> None:
    wire = Wire()
    good = snapshot(before, 1)
    wire.publish(good)
    wire.run()
    bad = snapshot(after | {"a"}, 5, poison)
    wire.publish(bad)
    for to_envoy in steps:
        wire.step(to_envoy)
    wire.run()
    assert wire.said == [f"refused {poison}"]  # once, and not again and again
    assert not wire.settled()
    wire.envoy.check()
    wire.publish(bad)
    wire.run()
    assert wire.said == [f"refused {poison}"] * 2  # the same again is tried again
    wire.publish(good)
    wire.run()
    assert wire.settled()
    assert wire.holds(good)


def test_silence_until_there_is_a_target() -> None:
    session = Session()
    for kind in (CLUSTERS, LISTENERS, ENDPOINTS):
        assert session.on_request(Request(type_url=kind)) == []
    first = session.set_target(snapshot("a"))
    assert [response.type_url for response in first] == [CLUSTERS, ENDPOINTS]


def test_a_second_request_with_one_nonce_is_answered() -> None:
    wire = Wire()
    wire.publish(snapshot("a"))
    wire.run()
    again = Request(
        type_url=ENDPOINTS, resource_names=["a"], response_nonce=wire.envoy.nonces[ENDPOINTS]
    )
    (response,) = wire.session.on_request(again)
    assert [r.value for r in response.resources] == [b"a=0"]


def test_a_subscription_after_a_refusal_is_no_acknowledgement() -> None:
    """Routes would lead to clusters whose endpoints Envoy does not have."""
    session = Session()
    first = snapshot("a")
    session.set_target(first)

    def ask(kind: str, names: Iterable[str], nonce: str = "", error: str = "") -> list[Response]:
        request = Request(type_url=kind, resource_names=names, response_nonce=nonce)
        if error:
            request.error_detail.message = error
        return session.on_request(request)

    for kind in (CLUSTERS, LISTENERS):
        for response in ask(kind, []):
            ask(kind, [], response.nonce)
    for response in ask(SECRETS, [CA]):
        ask(SECRETS, [CA], response.nonce)
    (response,) = ask(ENDPOINTS, ["a"])
    ask(ENDPOINTS, ["a"], response.nonce, "bad address")
    assert ask(ENDPOINTS, ["a", "b"], response.nonce) == []
    again = session.set_target(first)
    assert [each.type_url for each in again] == [ENDPOINTS]
    sent = ask(ENDPOINTS, ["a", "b"], again[0].nonce)
    assert [each.type_url for each in sent] == [LISTENERS]


def test_an_answer_to_an_older_response_is_ignored() -> None:
    wire = Wire()
    wire.publish(snapshot("a"))
    wire.run()
    old = wire.envoy.nonces[ENDPOINTS]
    wire.publish(snapshot("a", 1))
    late = Request(type_url=ENDPOINTS, resource_names=["a"], response_nonce=old)
    late.error_detail.message = "late"
    assert wire.session.on_request(late) == []
    assert wire.session.take_rejection() is None


def test_what_does_not_change_is_not_sent_again() -> None:
    wire = Wire()
    wire.publish(snapshot("ab", 0))
    wire.run()
    assert wire.session.set_target(snapshot("ab", 0)) == []
    assert wire.settled()
    changed = wire.session.set_target(snapshot("ab", 1))
    assert [response.type_url for response in changed] == [SECRETS, ENDPOINTS]


def test_of_endpoints_only_those_that_changed_are_sent() -> None:
    wire = Wire()
    wire.publish(snapshot("abc", 0))
    wire.run()
    changed = snapshot("abc", 0)
    endpoints = dict(changed.resources[ENDPOINTS]) | {"b": resource(ENDPOINTS, "b", "7")}
    responses = wire.session.set_target(Snapshot({**changed.resources, ENDPOINTS: endpoints}))
    (response,) = responses
    assert [r.value for r in response.resources] == [b"b=7"]
    # Before Envoy has acknowledged it, it is sent again with what changes next.
    endpoints = endpoints | {"c": resource(ENDPOINTS, "c", "8")}
    (response,) = wire.session.set_target(Snapshot({**changed.resources, ENDPOINTS: endpoints}))
    assert [r.value for r in response.resources] == [b"b=7", b"c=8"]


def test_equal_content_has_an_equal_version_whoever_sends_it() -> None:
    def version(target: Snapshot) -> str:
        session = Session()
        session.set_target(target)
        (response,) = session.on_request(Request(type_url=CLUSTERS))
        return str(response.version_info)

    assert version(snapshot("ab")) == version(snapshot("ba"))
    assert version(snapshot("ab")) != version(snapshot("a"))


def test_unknown_kinds_are_left_alone() -> None:
    session = Session()
    session.set_target(snapshot("a"))
    assert session.on_request(Request(type_url="type.googleapis.com/x.Y")) == []
