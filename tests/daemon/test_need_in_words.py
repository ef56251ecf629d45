"""What a delegation that names no capability is taken for."""

import pytest
from small_mesh import start_node

from meshd.capability.definition import capability, collect
from meshd.errors import NoCandidateError
from meshd.rpc.methods import CallContext

pytestmark = pytest.mark.net
done = []


@capability(tags=["text"])
def shout(text: str) -> str:
    """Say a text loudly."""
    done.append(text)
    return text.upper()


@pytest.fixture
async def delegate(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    node = await start_node(tmp_path, "a", collect(shout))
    done.clear()

    async def send(**params):
        answer = await node.registry.call("delegate", params, CallContext())
        return answer["peer_result"]["result"]

    yield send
    await node.stop(0)


async def test_a_need_in_words_goes_to_what_fits_it(delegate):
    assert await delegate(need="say it loudly", input={"text": "x"}) == "X"


async def test_a_need_that_nothing_fits_goes_nowhere_even_if_only_one_thing_is_offered(delegate):
    with pytest.raises(NoCandidateError, match="no capability fits") as caught:
        await delegate(need="quarterly invoices", input={"text": "x"})
    assert "shout" in caught.value.hint
    assert done == []


async def test_a_plain_text_goes_to_the_only_thing_that_is_offered(delegate):
    assert await delegate(text="quarterly invoices") == "QUARTERLY INVOICES"
