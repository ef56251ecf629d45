"""What `work` takes for the path that a piece of work came by, and how busy it says the node is."""

import msgspec
import pytest
from small_mesh import start_node

from meshd.capability.definition import capability, collect
from meshd.daemon.params import WorkParams
from meshd.errors import MeshError
from meshd.routing.signals import load_from_wire

ID = "0123456789abcdef"


def test_a_path_of_node_ids_is_taken():
    assert msgspec.convert({"hops": [ID, ID]}, WorkParams).hops == (ID, ID)


@pytest.mark.parametrize("hops", [["zz"], [ID.upper()], [ID + "0"], [5], [ID] * 17])
def test_anything_else_is_no_path(hops):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"hops": hops}, WorkParams)


@pytest.mark.net
async def test_work_and_offers_of_the_node_itself_carry_a_load_that_routing_can_read(tmp_path):
    @capability
    async def echo(text: str) -> str:
        return text

    @capability
    async def fail() -> None:
        raise ValueError("no")

    node = await start_node(tmp_path, "a", collect([echo, fail]))
    params = {"capability": "echo", "input": "x"}
    done = await node.methods.work_here(params, timeout_s=5.0)
    bid = await node.methods.offer_here({"capability": "echo"})
    with pytest.raises(MeshError) as caught:
        await node.methods.work_here({"capability": "fail"}, timeout_s=5.0)
    await node.stop(0)
    for told in (done, bid, caught.value.data):
        load = load_from_wire(told["load"])
        assert load is not None
        assert load.slots == node.worker.load().slots
    assert done["result"] == "x"
    assert bid["answer"] == "accept"
