"""Plans as TOML: all that a plan holds survives, and what a user writes is understood."""

import math
import tomllib
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import docs_blocks
import pytest
import repository
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import UsageError
from sim.faults import At, ClockJump, Crash, Heal, LossyLink, Partition, Restart, SetState, Start
from sim.network import Constant, Exponential, Shape, Uniform
from sim.plan import Plan
from sim.runner import run
from sim.scenario_file import CORE_ONLY, dumps, fault_kinds, fault_text, loads, seconds
from sim.scenarios import SCENARIOS

times = st.floats(0, 50)
nodes = st.integers(0, 9)


@given(name=st.sampled_from(sorted(SCENARIOS)), seed=st.integers(0, 2**63 - 1), size=nodes)
def test_every_plan_of_every_scenario_survives(name, seed, size):
    scenario = SCENARIOS[name]
    plan = scenario.make(max(2, size), seed, scenario.duration_s, 0.0)
    assert loads(dumps(plan)) == plan


@given(name=st.sampled_from(["swarm", "delegate_swarm"]), seed=st.integers(0, 2**63 - 1))
def test_a_drawn_plan_is_drawn_again_from_what_its_command_says(name, seed):
    scenario = SCENARIOS[name]
    drawn = scenario.make(0, seed, scenario.duration_s, 0.0)
    assert scenario.make(drawn.nodes, seed, drawn.duration_s, drawn.loss) == drawn


@settings(max_examples=200)
@given(seed=st.integers(0, 2**63 - 1), duration_s=st.floats(5, 3600), loss=st.floats(0, 1))
def test_every_drawn_plan_survives(seed, duration_s, loss):
    plan = SCENARIOS["swarm"].make(0, seed, duration_s, loss)
    assert loads(dumps(plan)) == plan


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    value=st.binary(),
    at_s=times,
    by_s=st.floats(-1e7, 1e7),
    group=st.frozensets(nodes),
    latency=st.sampled_from([Constant(0.5), Uniform(0.0, 1e-9), Exponential(1e-6, 0.1, 9.0)]),
)
def test_odd_values_survive(text, value, at_s, by_s, group, latency):
    faults = (
        At(at_s, SetState(1, text, value)),
        At(at_s, ClockJump(2, by_s)),
        At(at_s, Partition(text, (group, frozenset(range(10)) - group))),
        At(60.0, Heal(text)),
    )
    plan = Plan(
        scenario="".join(filter(str.isprintable, text))[:128],
        nodes=10,
        seed=0,
        duration_s=60.0,
        shape=Shape(latency=latency, bytes_per_s=None if at_s < 1 else at_s),
        converged=3,
        faults=faults,
    )
    assert loads(dumps(plan)) == plan


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_no_text_breaks_the_reader(text):
    with suppress(UsageError):
        loads(text)


def test_a_file_need_not_say_much():
    plan = loads("nodes = 5\nloss = 0.1", name="mine")
    assert (plan.scenario, plan.nodes, plan.seed, plan.duration_s) == ("mine", 5, 0, 60.0)
    assert (plan.converged, plan.faults) == (5, ())
    assert plan.shape == Shape(loss=0.1)


def test_times_have_units_and_nodes_have_ranges():
    plan = loads(
        'nodes = 12\nduration_s = "2m"\n[[fault]]\nat_s = "500ms"\nkind = "restart"\nnode = 3\n'
        'after_s = 2\nseeds = [0, "4-6", 11]\n'
    )
    assert plan.duration_s == 120.0
    assert plan.faults == (At(0.5, Restart(3, 2.0, (0, 4, 5, 6, 11))),)


def test_state_is_text_or_hexadecimal():
    start = 'nodes = 2\n[[fault]]\nat_s = 1\nkind = "set_state"\nnode = 0\nkey = "k"\nvalue = '
    assert loads(start + '"plain"').faults[0].fault.value == b"plain"
    assert loads(start + '{ hex = "00ff" }').faults[0].fault.value == b"\x00\xff"


def test_what_is_written_is_short():
    written = dumps(SCENARIOS["split"].make(1_000, 1, 60.0, 0.0))
    halves = tomllib.loads(
        dumps(
            Plan(
                scenario="halves",
                nodes=1_000,
                seed=0,
                duration_s=60.0,
                converged=1_000,
                faults=(
                    At(1.0, Partition("a", (frozenset(range(500)), frozenset(range(500, 1_000))))),
                ),
            )
        )
    )
    assert halves["fault"][0]["groups"] == [["0-499"], ["500-999"]]
    assert len(written) < 7_000


def test_a_fault_is_told_in_one_short_line():
    odd = frozenset(range(1, 1_000, 2))
    text = fault_text(Partition("a", (odd, frozenset(range(0, 1_000, 2)))))
    assert text.startswith("Partition(name=a, groups=[[1, 3, 5, ")
    assert "... 488 more]" in text
    assert fault_text(Restart(3, 1 / 3, (4, 5, 6))) == (
        "Restart(node=3, after_s=0.333333, seeds=[4-6])"
    )


def test_every_kind_of_fault_has_a_name():
    kinds = fault_kinds()
    assert {kinds["crash"], kinds["start"], kinds["lossy_link"]} == {Crash, Start, LossyLink}
    assert len(kinds) == len(set(kinds.values())) > 15


FIELDS = {
    "node": "1", "nodes": "[1]", "seeds": "[0]", "source": "0", "target": "1", "sources": "[0]",
    "targets": "[1]", "groups": "[[0], [1, 2]]", "name": '"cut"', "by_s": "5.0", "every_s": "1.0",
    "per_s": "10.0", "key": '"k"', "value": '"v"', "cost_s": "0.1", "low_s": "0.5", "high_s": "1.0",
    "for_s": "1.0", "after_s": "1.0", "back_s": "1.0", "loss": "0.5", "newer": "true",
    "capability": '"work_once"', "forgery": '"joins"',
}  # fmt: skip


def written(kind, at_s):
    """A fault of this kind as a user writes it."""
    names = [each.name for each in fields(fault_kinds(whole=True)[kind])]
    lines = [f"{name} = {FIELDS[name]}" for name in names if name in FIELDS]
    return "\n".join(["[[fault]]", f"at_s = {at_s}", f'kind = "{kind}"', *lines, ""])


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["core", "whole daemons"])
def test_every_kind_of_fault_can_happen_from_a_file(whole):
    kinds = [kind for kind in fault_kinds(whole=whole) if not (whole and kind in CORE_ONLY)]
    head = f"nodes = 4\nduration_s = {len(kinds) + 5}\nwhole = {str(whole).lower()}\n"
    faults = "".join(written(kind, at_s + 1) for at_s, kind in enumerate(kinds))
    plan = loads(head + faults)
    assert len(plan.faults) == len(kinds)
    assert not [each for each in run(plan).violations if "raised" in each.text]
    assert not [each for each in run(plan).violations if "AttributeError" in each.text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("60", 60.0), ("1.5h", 5400.0), ("250ms", 0.25), ("2m", 120.0), (" 5s ", 5.0)],
)
def test_durations_are_read(text, expected):
    found = seconds(text)
    assert found is not None
    assert math.isclose(found, expected)


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 s", "1e3", "5d", "٣s", "nan", "inf"])
def test_what_is_no_duration_is_none(text):
    assert seconds(text) is None


def test_the_scenario_files_of_the_page_are_what_they_seem():
    page = docs_blocks.Document(
        Path("docs/SIMULATOR.md"), (repository.ROOT / "docs" / "SIMULATOR.md").read_text("utf-8")
    )
    plans = [loads(block.text) for block in page.blocks() if block.language == "toml"]
    assert [len(plan.faults) for plan in plans] == [3]
    assert plans[0].duration_s == 120.0


@pytest.mark.parametrize("name", [r"\u001b[31mred", r"two\nlines", "x" * 129])
def test_a_name_that_a_terminal_would_obey_is_refused(name):
    with pytest.raises(UsageError, match="the scenario is called"):
        loads(f'nodes = 3\nscenario = "{name}"\n')
