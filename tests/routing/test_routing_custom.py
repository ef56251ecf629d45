"""Policies of one's own: by a function, by an entry point, in the same pipeline as all."""

import math
import random
from importlib.metadata import EntryPoint

import pytest
from routing_world import NOW, busy_load, peer, view

from meshd.errors import UsageError
from meshd.routing import installed
from meshd.routing.custom import ADDED_MAX, Policies
from meshd.routing.installed import GROUP
from meshd.routing.need import Need
from meshd.routing.policies import POLICIES
from meshd.routing.router import explain, plan
from meshd.routing.settings import RoutingSettings
from meshd.routing.signals import Outstanding


def by_name(peer, estimate):
    return -float(peer.name[1:]) + 0.0 * estimate.rif


def made_by(policy, *peers, is_detailed=False):
    return plan(
        view(*peers), Need("echo"), NOW, outstanding=Outstanding(), random=random.Random(1),
        settings=RoutingSettings(), named=lambda _: policy, is_detailed=is_detailed,
    )  # fmt: skip


def names(made):
    return [c.peer.name for c in made.attempts]


def test_a_function_orders_the_candidates_and_is_probed_for_like_any_policy():
    policies = Policies()
    assert policies.add("last_first", by_name) is policies.named("last_first")
    old = [peer(n, load=busy_load(1), load_at=NOW - 1) for n in (2, 3, 4)]
    made = made_by(policies.named("last_first"), peer(1), *old)
    assert names(made) == ["n4", "n3", "n2", "n1"]
    assert len(made.probes.nodes) == 2
    made = made_by(policies.named("last_first"), *old, is_detailed=True)
    assert explain(made)["policy"] == "last_first"
    assert explain(made)["candidates"][0]["factors"]["cost"] == -4.0


def test_what_is_no_number_comes_last_and_what_fails_says_so():
    policies = Policies()
    odd = policies.add("odd", lambda peer, _: math.nan if peer.name == "n1" else 1.0)
    assert names(made_by(odd, peer(1), peer(2), peer(3)))[-1] == "n1"
    broken = policies.add("broken", lambda peer, _: peer.nothing)
    with pytest.raises(UsageError, match=r"policy broken failed for n[12]: AttributeError"):
        made_by(broken, peer(1), peer(2))


def test_names_are_checked_and_a_second_of_one_name_gives_the_first_up():
    policies = Policies()
    for name in ("adaptive", "no name", ""):
        with pytest.raises(UsageError):
            policies.add(name, by_name)
    first = policies.add("mine", by_name)
    assert policies.add("mine", by_name) is not first
    for number in range(ADDED_MAX - 1):
        policies.add(f"p{number}", by_name)
    with pytest.raises(UsageError, match="at most"):
        policies.add("more", by_name)
    policies.add("mine", by_name)


def test_named_ones_are_found_and_others_told_of_with_all_there_are():
    policies = Policies()
    assert policies.named("nearest") is POLICIES["nearest"]
    policies.add("mine", by_name)
    with pytest.raises(UsageError) as caught:
        policies.named("mime")
    assert caught.value.hint.startswith("did you mean mine? policies: adaptive")
    with pytest.raises(UsageError) as caught:
        policies.named("zzz")
    assert "did you mean" not in caught.value.hint


async def later(peer, estimate):
    return peer.rtt_s + estimate.rif


@pytest.mark.parametrize("cost", [3, "adaptive", None, later])
def test_what_is_no_plain_function_is_refused_at_once(cost):
    policies = Policies()
    with pytest.raises(UsageError, match=r"policy mine is .*, and no plain function"):
        policies.add("mine", cost)
    assert policies.added == ()


@pytest.fixture
def install(monkeypatch):
    """A function that plays packages which name policies, each by its place in a module."""

    def install(**places):
        points = [EntryPoint(name, place, GROUP) for name, place in places.items()]
        monkeypatch.setattr(
            installed, "entry_points", lambda group: points if group == GROUP else ()
        )
        installed.installed.cache_clear()

    yield install
    installed.installed.cache_clear()


def test_an_installed_policy_is_loaded_when_it_is_first_named(install):
    install(installed=f"{__name__}:by_name", gone=f"{__name__}:nothing")
    assert list(installed.policy_faults("gone")) == []
    (fault,) = installed.policy_faults("instaled")
    assert fault.endswith("installed, gone; did you mean installed?")
    policies = Policies()
    assert names(made_by(policies.named("installed"), peer(1), peer(2))) == ["n2", "n1"]
    with pytest.raises(UsageError, match="gone is installed but cannot be loaded"):
        policies.named("gone")
    with pytest.raises(UsageError) as caught:
        policies.named("instaled")
    assert "did you mean installed" in caught.value.hint


def test_a_package_that_fails_whichever_way_is_told_of_as_such(install, tmp_path, monkeypatch):
    (tmp_path / "policy_without_licence.py").write_text("raise ValueError('no licence')")
    monkeypatch.syspath_prepend(tmp_path)
    install(boom="policy_without_licence:f", three=f"{__name__}:ADDED_MAX")
    policies = Policies()
    with pytest.raises(UsageError, match=r"boom is installed but cannot be loaded: .*no licence"):
        policies.named("boom")
    with pytest.raises(UsageError, match="policy three is 64, and no plain function"):
        policies.named("three")
    assert policies.added == ()


def test_installed_ones_whose_names_no_policy_may_have_are_refused_by_a_configuration(install):
    install(**{"my policy": f"{__name__}:by_name", "pinned": f"{__name__}:by_name"})
    assert installed.installed() == {}
    (fault,) = installed.policy_faults("my policy")
    assert fault.startswith("'my policy' is none of adaptive, ")
    assert "names have 1 to 64 letters" in fault
    (fault,) = installed.policy_faults("pinned")
    assert "names have" not in fault
    with pytest.raises(UsageError, match="there is no policy 'my policy'"):
        Policies().named("my policy")


def test_a_program_may_configure_its_own(install):
    install()
    assert list(installed.policy_faults("mine", ["mine"])) == []
    (fault,) = installed.policy_faults("mime", ["mine"])
    assert fault.endswith("sticky, mine; did you mean mine?")
