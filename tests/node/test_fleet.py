"""Which generations get traffic and which are retired, whatever happens in whichever order."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tidegate.config.model import ModelConfig, Versions
from tidegate.controller.back_off import BackOff
from tidegate.node.fleet import Fleet, Generation, Replica, ReplicaState
from tidegate.replica.spec import Ready, ReplicaSpec
from tidegate.repository.entries import ModelEntry, Problem, Repository, VersionEntry

BROKEN = Problem("m/model.yaml", "a slip", "invalid", "")


def version_entry(version: int, content: str = "a") -> VersionEntry:
    path = Path(f"/models/m/{version}/model.onnx")
    return VersionEntry(version, path, "onnx", "onnx", f"{version}{content}")


def repository(
    *versions: int, content: str = "a", policy: object = "latest", replicas: int = 1
) -> Repository:
    """The model ``m`` with these versions; without any, it cannot be read."""
    config = ModelConfig.model_validate({"versions": policy, "replicas": replicas})
    entries = {v: version_entry(v, content) for v in versions}
    problems = () if versions else (BROKEN,)
    return Repository({"m": ModelEntry("m", config, entries, problems, "", 0.0)})


def spec_of(version: int, index: int, replicas: int, content: str = "a") -> ReplicaSpec:
    return ReplicaSpec(
        id=100 * version + index, index=index, fingerprint=f"{version}{content}", model="m",
        version=version, path=version_entry(version).path, runtime="onnx",
        config=ModelConfig(replicas=replicas), socket=Path(f"/r/{version}{index}.sock"),
        lifeline=Path("/l"), threads=1, max_message_size=1, drain_timeout=1.0,
        notices=Path("/n"),
    )  # fmt: skip


def ready(pid: int = 1) -> Ready:
    return Ready(pid=pid, platform="", device="cpu", batching=False, max_batch_size=1, seconds=0.0)


class Node:
    """What the controller does with a fleet, without processes."""

    def __init__(self) -> None:
        self.missing: set[Path] = set()
        self.found = Repository({})
        self.fleet = Fleet(exists=lambda path: path not in self.missing)

    def look(self, found: Repository) -> None:
        """The repository changed; replicas of new generations start."""
        self.found = found
        self.fleet.update(found)
        for generation in self.fleet.generations():
            if generation.desired and not generation.final:
                for index in range(generation.count):
                    generation.replicas.setdefault(index, Replica(index))

    def apply(self) -> dict[str, list[Replica]]:
        """Give traffic, tell the edge, let the retired go; return what the edge was told."""
        self.fleet.make_live()
        retired = self.fleet.retired()
        told = dict(self.fleet.clusters())
        for generation in retired:
            self.fleet.forget(generation)
        return told

    def become(self, version: int, state: ReplicaState, *indices: int) -> None:
        generation = self.generation(version)
        for index in indices or generation.replicas:
            generation.replicas[index].state = state

    def generation(self, version: int) -> Generation:
        return max(
            (g for g in self.fleet.generations("m") if g.version == version),
            key=lambda g: g.desired,
        )

    def versions(self) -> list[int]:
        return sorted(g.version for g in self.fleet.generations("m"))

    def default(self) -> int | None:
        found = self.fleet.default("m")
        return None if found is None else found.version


def serving(version: int, replicas: int = 1) -> Node:
    """A node on which this version is live."""
    node = Node()
    node.look(repository(version, replicas=replicas))
    node.become(version, ReplicaState.READY)
    node.apply()
    return node


def test_the_first_replica_gives_a_new_model_its_traffic() -> None:
    node = Node()
    node.look(repository(1, replicas=3))
    assert node.apply() == {"m": [], "m:1": []}
    assert node.fleet.reason("m") == "it is being loaded"
    node.become(1, ReplicaState.READY, 2)
    assert [r.index for r in node.apply()["m"]] == [2]


def test_a_new_version_takes_over_when_all_its_replicas_are_ready() -> None:
    node = serving(1, replicas=2)
    node.look(repository(1, 2, replicas=2))
    assert len(node.apply()["m"]) == 2
    assert node.default() == 1
    node.become(2, ReplicaState.READY, 0)
    assert set(node.apply()) == {"m", "m:1", "m:2"}
    assert node.default() == 1
    node.become(2, ReplicaState.READY)
    told = node.apply()
    assert told["m"] == told["m:2"]
    assert "m:1" not in told
    assert node.versions() == [2]


def test_a_broken_new_version_leaves_the_old_one() -> None:
    node = serving(1)
    node.look(repository(1, 2))
    broken = node.generation(2)
    broken.failure, broken.final = "no model", True
    told = node.apply()
    assert [r.index for r in told["m"]] == [0]
    assert told["m:2"] == []
    assert node.fleet.reason("m", "2") == "no model"
    assert node.fleet.settled
    # The next attempt replaces both.
    node.look(repository(1, 2, 3))
    node.become(3, ReplicaState.READY)
    node.apply()
    assert node.versions() == [3]


def test_back_to_an_older_version_whose_successors_are_removed() -> None:
    node = serving(2)
    node.look(repository(1))
    assert node.apply()["m"]
    assert node.default() == 2
    node.become(1, ReplicaState.READY)
    node.apply()
    assert node.versions() == [1]


def test_each_version_is_replaced_by_its_own_new_content() -> None:
    node = Node()
    node.look(repository(1, 2, policy="all"))
    for version in (1, 2):
        node.become(version, ReplicaState.READY)
    node.apply()
    node.look(repository(1, 2, policy="all", content="b"))
    node.become(2, ReplicaState.READY)
    told = node.apply()
    assert told["m:1"], "the old 1 serves until the new one does"
    assert told["m"] == told["m:2"] == node.generation(2).ready
    assert node.versions() == [1, 1, 2]
    node.become(1, ReplicaState.READY)
    node.apply()
    assert node.versions() == [1, 2]


def test_a_slip_in_the_settings_leaves_what_was_live() -> None:
    node = serving(1)
    for slip in (repository(), repository(1, policy=9)):
        node.look(slip)
        assert node.apply()["m"]
        assert node.versions() == [1]
    # Unless its files are gone as well: then the controller says why.
    node.missing.add(version_entry(1).path)
    node.look(repository())
    assert node.apply() == {"m": []}
    assert "a slip" in (node.fleet.reason("m") or "")


def test_a_model_of_which_nothing_is_to_be_served_is_let_go() -> None:
    node = serving(1)
    node.look(repository(1, policy=[]))
    assert node.apply() == {"m": []}
    assert node.versions() == []
    assert node.fleet.reason("m") == "no version of it is selected"


def test_a_removed_model_is_let_go() -> None:
    node = serving(1)
    node.look(Repository({}))
    assert node.apply() == {}
    assert node.versions() == []


def test_a_version_that_comes_back_before_it_was_retired_goes_on() -> None:
    node = serving(1)
    node.look(repository(1, 2))
    first = node.generation(1)
    node.apply()
    node.look(repository(1))
    assert node.generation(1) is first
    node.apply()
    assert node.versions() == [1]


def test_adopted_replicas_serve_at_once() -> None:
    node = Node()
    for index in (0, 2):
        node.fleet.adopt(version_entry(1), spec_of(1, index, 3), ready(10 + index))
    node.look(repository(1, replicas=3))
    assert [r.pid for r in node.fleet.clusters()["m"]] == [10, 12]
    assert [r.state for r in node.generation(1).replicas.values()].count(
        ReplicaState.STARTING
    ) == 1
    # One that nothing stands for any more is retired, and not before there is another.
    other = Node()
    other.fleet.adopt(version_entry(1), spec_of(1, 0, 1), ready())
    other.look(repository(2))
    assert other.apply()["m"]
    other.become(2, ReplicaState.READY)
    other.apply()
    assert other.versions() == [2]


contents = st.sampled_from("ab")
policies = st.sampled_from(["latest", "all", {"latest": 2}, 2, [1, 3], 9])
found_models = st.one_of(
    st.just(Repository({})),
    st.builds(
        lambda versions, content, policy, replicas: repository(
            *versions, content=content, policy=policy, replicas=replicas
        ),
        st.sets(st.integers(1, 4)),
        contents,
        policies,
        st.integers(1, 3),
    ),
)


class AnyOrder(RuleBasedStateMachine):
    """Repositories change, replicas become ready, crash and fail, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node()
        self.fleet = self.node.fleet
        self.told: dict[str, list[Replica]] = {}
        self.applied = False

    @initialize(adopted=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 1)), max_size=4))
    def adopt(self, adopted: list[tuple[int, int]]) -> None:
        for version, index in adopted:
            self.fleet.adopt(version_entry(version), spec_of(version, index, 2), ready())

    @rule(found=found_models, gone=st.booleans())
    def change(self, found: Repository, gone: bool) -> None:
        """The repository changes: that alone never takes an answer away."""
        served = bool(self.told.get("m"))
        self.node.missing = {version_entry(v).path for v in range(1, 5)} if gone else set()
        entry = found.models.get("m")
        self.node.look(found)
        self.apply()
        if not served or entry is None or self.fleet.unloaded:
            return
        if entry.config.versions.select(list(entry.versions)) or not gone:
            assert self.told["m"], "a living model was given an empty set"

    @rule(unloaded=st.booleans())
    def by_hand(self, unloaded: bool) -> None:
        """The model is unloaded or loaded."""
        if unloaded:
            self.fleet.unloaded.add("m")
        else:
            self.fleet.unloaded.discard("m")
        self.node.look(self.node.found)
        self.apply()
        if unloaded:
            assert not self.told.get("m")
            assert not list(self.fleet.generations("m"))

    @rule(data=st.data(), state=st.sampled_from([ReplicaState.READY, ReplicaState.BACKING_OFF]))
    def replica(self, data: st.DataObject, state: ReplicaState) -> None:
        """A replica becomes ready, or crashes."""
        places = [r for g in self.fleet.generations() for r in g.replicas.values()]
        if places:
            data.draw(st.sampled_from(places)).state = state
            self.apply()

    @rule(data=st.data())
    def fails(self, data: st.DataObject) -> None:
        """A generation turns out not to be loadable."""
        fresh = [g for g in self.fleet.generations() if not g.live and not g.ready]
        if fresh:
            generation = data.draw(st.sampled_from(fresh))
            generation.failure, generation.final = "broken", True
            self.apply()

    def apply(self) -> None:
        before = list(self.fleet.generations("m"))
        self.told = self.node.apply()
        after = list(self.fleet.generations("m"))
        let_go = [g for g in before if g not in after]
        assert not any(g.desired and "m" in self.fleet.models for g in let_go)
        if "m" in self.fleet.models and any(g.live for g in let_go):
            waiting = [g for g in after if g.desired and not g.live]
            assert not waiting or any(g.live for g in after), "the only live one was retired"
        self.applied = True

    @invariant()
    def the_edge_knows_living_replicas_of_the_right_version(self) -> None:
        if not self.applied:
            return
        assert ("m" in self.told) == ("m" in self.fleet.models)
        owners = {id(r): g for g in self.fleet.generations() for r in g.replicas.values()}
        for key, replicas in self.told.items():
            _, _, version = key.partition(":")
            for replica in replicas:
                owner = owners[id(replica)]  # not one that was let go
                assert replica.state is ReplicaState.READY
                assert owner.live
                assert version in ("", str(owner.version))
        default = self.fleet.default("m")
        if "m" in self.told and default is not None:
            assert self.told["m"] == default.ready
        if self.told.get("m") == []:
            assert self.fleet.reason("m"), "nobody knows why there is no answer"

    @invariant()
    def a_version_is_wanted_once(self) -> None:
        wanted = [g.version for g in self.fleet.generations("m") if g.desired]
        assert len(wanted) == len(set(wanted))

    @precondition(lambda self: "m" in self.fleet.models)
    @rule()
    def all_goes_well(self) -> None:
        """When nothing else happens, what is desired is what there is."""
        entry = self.fleet.models["m"]
        for generation in self.fleet.generations("m"):
            if not generation.final:
                for replica in generation.replicas.values():
                    replica.state = ReplicaState.READY
        self.apply()
        generations = list(self.fleet.generations("m"))
        selected = entry.config.versions.select(list(entry.versions))
        if any(g.final for g in generations):
            return
        if self.fleet.unloaded:
            assert not generations
            return
        if selected:
            assert sorted(g.version for g in generations) == sorted(selected)
            assert self.node.default() == max(selected)
        assert all(g.live and g.desired for g in generations)


AnyOrder.TestCase.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def test_the_first_restart_is_immediate_and_the_next_ones_wait() -> None:
    back_off = BackOff()
    assert [back_off.crashed(0.1) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_life_of_some_seconds_forgives() -> None:
    back_off = BackOff(calm=1.0)
    for _ in range(5):
        back_off.crashed(0.0)
    assert back_off.looping
    assert back_off.crashed(1.0) == 0.0
    assert not back_off.looping


@given(st.lists(st.floats(0, 10), max_size=30))
def test_waits_are_bounded_and_never_shrink_without_a_calm_life(served: list[float]) -> None:
    back_off = BackOff(calm=1.0)
    last = 0.0
    for seconds in served:
        wait = back_off.crashed(seconds)
        assert 0 <= wait <= 30
        assert wait == 0.0 if seconds >= 1.0 else wait >= last
        last = wait


def test_days_of_crashes_are_no_other_error() -> None:
    back_off = BackOff()
    assert {back_off.crashed(0.0) for _ in range(5000)} == {
        0.0,
        0.5,
        1.0,
        2.0,
        4.0,
        8.0,
        16.0,
        30.0,
    }


def test_versions_are_what_they_say() -> None:
    assert Versions().select([3, 1, 2]) == (3,)


def test_a_label_stays_where_it_leads_until_it_can_move() -> None:
    node = Node()
    before = {"labels": {"stable": 1, "canary": 2}}
    node.look(repository(1, 2, policy=before))
    node.become(1, ReplicaState.READY)
    node.become(2, ReplicaState.READY)
    told = node.apply()
    assert told["m@stable"] == told["m:1"] == node.generation(1).ready
    assert told["m@canary"] == told["m"] == node.generation(2).ready
    node.look(repository(1, 2, content="b", policy={"labels": {"stable": 2}}))
    told = node.apply()
    assert [r.state for r in told["m@stable"]] == [ReplicaState.READY]
    assert told["m@stable"] is not told["m"]
    assert node.versions() == [1, 2, 2]
    node.become(2, ReplicaState.READY)
    told = node.apply()
    assert told["m@stable"] == told["m"] == node.generation(2).ready
    assert told.keys() == {"m", "m:2", "m@stable"}
    assert node.versions() == [2]


def test_a_label_of_a_version_that_is_being_loaded() -> None:
    node = Node()
    node.look(repository(1, 2, policy={"labels": {"stable": 1, "gone": 7}}))
    node.become(2, ReplicaState.READY)
    told = node.apply()
    assert told["m@stable"] == []
    assert "m@gone" not in told


def test_a_task_leads_to_the_first_model_that_claims_it() -> None:
    fleet = Fleet()
    for name, tasks in (("b", (69, 7)), ("a", (69,))):
        entry = ModelEntry(name, ModelConfig(task_ids=tasks), {}, (), "", 0.0)
        fleet.models[name] = entry
    assert fleet.tasks() == {"69": "a", "7": "b"}
