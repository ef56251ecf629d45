"""The page on commands and settings says what the code does."""

import msgspec
import usage_page

from meshd.capability.declared import CapabilityConfig
from meshd.cli.failure import Exit
from meshd.config import POLICIES

TEXT = usage_page.PAGE.read_text("utf-8")


def test_the_page_has_every_command_option_and_setting():
    assert usage_page.written(TEXT) == TEXT, "run: python tests/usage_page.py"


def test_the_page_has_all_generated_parts():
    assert "### meshd start\n" in TEXT
    assert "### [limits]\n" in TEXT
    assert "| `suspicion_mult` |" in TEXT
    assert "| `t_min_s` | s |" in TEXT


def test_a_changed_setting_is_noticed():
    changed = TEXT.replace("| `slots` |", "| `places` |")
    assert changed != TEXT
    assert usage_page.written(changed) == TEXT


def test_the_page_has_every_exit_code():
    assert not [code for code in Exit if f"| {code.value} |" not in TEXT]


def test_the_page_has_every_key_of_a_declared_capability():
    table = TEXT.partition("### [[capability]]")[2].partition("\n## ")[0]
    keys = [field.name for field in msgspec.structs.fields(CapabilityConfig)]
    assert not [key for key in keys if f"`{key}`" not in table]


def test_the_page_has_every_policy():
    assert not [policy for policy in POLICIES if f"| `{policy}` |" not in TEXT]
