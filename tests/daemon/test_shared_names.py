"""Two nodes of one name: both stay, both are marked, and a call by that name is refused."""

import pytest
from small_mesh import start_node

from meshd.cli import nodes
from meshd.errors import NoCandidateError, UsageError
from meshd.model import MemberState
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net


@pytest.fixture
async def twins(tmp_path):
    """A node, and another one of its name on another machine, as it were."""
    one = await start_node(tmp_path / "one", "lab-a")
    two = await start_node(tmp_path / "two", "lab-a", join=[one])
    await one.wait_view(lambda view: len(view.named("lab-a")) == 2, 10)
    yield one, two
    await two.stop()
    await one.stop()


async def ask(node, method, **params):
    return await node.registry.call(method, params, CallContext())


async def test_both_stay_and_are_marked_by_their_ids(twins):
    one, two = twins
    rows = (await ask(one, "peers"))["nodes"]
    assert [row["state"] for row in rows] == ["alive", "alive"]
    assert [row["name_shared"] for row in rows] == [True, True]
    labels = {nodes.label(row) for row in rows}
    ids = [node.node_id.hex()[:4] for node in (one, two)]
    assert labels == {f"lab-a ({ids[0]}) *", f"lab-a ({ids[1]})"}


async def test_status_and_doctor_tell_of_it(twins):
    one, two = twins
    (problem,) = [p for p in (await ask(one, "status"))["problems"] if "are named" in p]
    checks = {check["name"]: check for check in (await ask(one, "doctor"))["checks"]}
    assert checks["names"]["status"] == "warning"
    for told in (problem, checks["names"]["detail"]):
        assert told.startswith("2 nodes are named lab-a: ")
        assert one.node_id.hex() in told
        assert f"{two.node_id.hex()} at {two.address}" in told


async def test_a_call_by_that_name_is_refused_with_both_ids_and_one_by_id_is_not(twins):
    one, two = twins
    with pytest.raises(UsageError) as refused:
        await ask(one, "delegate", capability="x", input={}, to="lab-a")
    assert one.node_id.hex() in refused.value.hint
    assert two.node_id.hex() in refused.value.hint
    for to in (two.node_id.hex(), "nobody"):
        with pytest.raises(NoCandidateError):
            await ask(one, "delegate", capability="x", input={}, to=to)


async def test_a_name_is_free_again_when_its_other_bearer_has_left(twins):
    one, two = twins
    await two.leave(0.0)
    left = await one.wait_view(lambda v: v.get(two.node_id).state is MemberState.LEFT, 10)
    assert left.clashes == {}
    with pytest.raises(NoCandidateError):
        await ask(one, "delegate", capability="x", input={}, to="lab-a")
