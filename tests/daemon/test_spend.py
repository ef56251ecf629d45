"""Prices, skill, scope and spend from a program's decorator through a daemon and back."""

import asyncio

import pytest
from small_mesh import start_node

from meshd import Mesh, charge
from meshd.errors import BudgetError, NoCandidateError

pytestmark = pytest.mark.net


@pytest.fixture
async def node(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    tmp_path.chmod(0o700)
    started = await start_node(
        tmp_path, control_path=str(tmp_path / "a.sock"), region="eu-west", labels={"gpu": "a100"}
    )
    yield started
    await started.stop(0)


def program(node, name):
    return Mesh(name, control=node.control_path)


async def spent(node):
    return [(row.caller, row.capability, row.calls, row.units, row.cost_usd)
            for row in node.dispatcher.ledger.rows()]  # fmt: skip


async def test_a_program_is_paid_by_the_unit_and_each_caller_has_an_account(node):
    seller = program(node, "scanner")

    @seller.agent(
        cost_usd_per_call=0.01, cost_usd_per_unit=0.5, unit="page", attributes={"paper": ["a4"]}
    )
    def scan(pages: int) -> int:
        charge(pages)
        return pages

    async with seller, program(node, "buyer") as buyer:
        answer = await buyer.delegate("scan", {"pages": 2})
        assert (answer["cost_usd"], answer["units"]) == (pytest.approx(1.01), 2.0)
        assert answer["peer_result"]["result"] == 2
        await seller.call("scan", {"pages": 1}, where="paper = a4", region="eu")
        task = await buyer.submit("scan", {"pages": 4}, labels={"gpu": "a100"}, difficulty=0.3)
        assert await task.result(5) == 4
        with pytest.raises(BudgetError):
            await buyer.call("scan", {"pages": 1}, budget_usd=0.1)
        with pytest.raises(NoCandidateError, match="paper = a3"):
            await buyer.call("scan", {"pages": 1}, where=["paper = a3"])
        (manifest,) = [await buyer.manifest("scan")]
        assert (manifest.unit, manifest.attributes) == ("page", {"paper": ("a4",)})
        (row,) = await buyer.peers()
        assert (row["region"], row["labels"]) == ("eu-west", {"gpu": "a100"})
        assert row["capabilities"][0]["cost_usd_per_unit"] == 0.5
    assert await spent(node) == [
        ("agent buyer", "scan", 2, 6.0, pytest.approx(3.02)),
        ("agent scanner", "scan", 1, 1.0, pytest.approx(0.51)),
    ]


async def test_unknown_preferences_and_options_are_told_as_python_tells_them(node):
    async with program(node, "odd") as mesh:
        with pytest.raises(TypeError, match="'regoin'"):
            await mesh.call("scan", regoin="eu")
        with pytest.raises(TypeError, match="'prise'"):
            mesh.agent(prise=1)(lambda: None)


async def test_the_accounts_are_told_on_the_control_socket(node):
    seller = program(node, "seller")

    @seller.agent(cost_usd_per_call=0.25)
    async def sell() -> str:
        return "sold"

    async with seller:
        await asyncio.gather(*(seller.call("sell") for _ in range(3)))
        from meshd.rpc.methods import CallContext

        told = await node.registry.call("spend", {}, CallContext())
    assert (told["schema"], told["calls"], told["cost_usd"]) == ("meshd.spend/1", 3, 0.75)
