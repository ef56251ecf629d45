"""The protocol's page lists the messages that there are."""

import re
from pathlib import Path
from typing import get_args

from meshd.gossip.messages import Message

PAGE = Path(__file__).parents[2] / "docs" / "PROTOCOL.md"


def _dashed(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def test_the_page_has_each_kind_under_its_number():
    listed = re.findall(r"^\| (\d+) \| ([a-z-]+) \|", PAGE.read_text(), re.MULTILINE)
    kinds = {kind.__struct_config__.tag: _dashed(kind.__name__) for kind in get_args(Message)}
    assert {int(number): name for number, name in listed} == kinds
