"""What `work` takes for the path that a piece of work came by."""

import msgspec
import pytest

from meshd.daemon.methods import WorkParams

ID = "0123456789abcdef"


def test_a_path_of_node_ids_is_taken():
    assert msgspec.convert({"hops": [ID, ID]}, WorkParams).hops == (ID, ID)


@pytest.mark.parametrize("hops", [["zz"], [ID.upper()], [ID + "0"], [5], [ID] * 17])
def test_anything_else_is_no_path(hops):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"hops": hops}, WorkParams)
