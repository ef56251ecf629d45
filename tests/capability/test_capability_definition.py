"""Capabilities from decorated functions, methods, classes and modules."""

import functools
import types
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from meshd.capability.definition import (
    MARK,
    AgentDefinition,
    Declaration,
    FunctionHandler,
    RemoteHandler,
    capability,
    collect,
    define,
)
from meshd.errors import UsageError


@capability
def echo(text: str) -> str:
    """Give it back.

    More words.
    """
    return text


@capability(
    "count-words",
    version="2.0.0",
    description="Counts",
    tags=["text"],
    examples="count this",
    idempotent=True,
    timeout_s=5,
    concurrency=2,
    agent="counter",
)
async def count(text: str) -> int:
    return len(text.split())


def names(source) -> list[str]:
    return [d.manifest.name for d in collect(source)]


def test_a_bare_decorator_takes_name_and_first_line():
    (found,) = collect(echo)
    assert (found.manifest.name, found.manifest.description) == ("echo", "Give it back.")
    assert found.manifest.input_schema["required"] == ["text"]
    assert isinstance(found.handler, FunctionHandler)
    assert not found.handler.is_async
    assert found.handler.function(**found.handler.arguments("a")) == "a"


def test_a_decorated_function_stays_itself():
    assert echo("a") == "a"
    assert isinstance(echo, types.FunctionType)
    assert getattr(echo, MARK).name == ""


async def test_arguments_of_the_decorator_reach_the_manifest():
    (found,) = collect(count)
    manifest = found.manifest
    assert manifest.name == "count-words"
    assert (manifest.version, manifest.description) == ("2.0.0", "Counts")
    assert (manifest.tags, manifest.examples) == (("text",), ("count this",))
    assert manifest.idempotent
    assert (manifest.timeout_s, manifest.concurrency, manifest.agent) == (5, 2, "counter")
    assert isinstance(found.handler, FunctionHandler)
    assert found.handler.is_async
    assert await count("a b") == 2


def test_what_a_capability_costs_and_is_good_for_reaches_the_manifest():
    @capability(
        cost_usd_per_call=1, cost_usd_per_unit=0.5, unit="page", proficiency=1,
        attributes={"warehouse": ["A", "B"], "gpu": "a100"},
    )  # fmt: skip
    def scan(page: str) -> str:
        return page

    (found,) = collect(scan)
    manifest = found.manifest
    assert (manifest.cost_usd_per_call, manifest.cost_usd_per_unit) == (1.0, 0.5)
    assert (manifest.unit, manifest.proficiency) == ("page", 1.0)
    assert manifest.attributes == {"warehouse": ("A", "B"), "gpu": "a100"}
    with pytest.raises(TypeError, match="'prise'"):
        capability("scan", prise=1.0)
    with pytest.raises(UsageError, match="'gpu'"):
        collect(capability("scan", attributes={"gpu": [1]})(lambda: None))


class Base:
    @capability
    def first(self) -> str:
        return "base"

    @capability
    def dropped(self) -> str:
        return "base"


class Agent(Base):
    def __init__(self, greeting: str = "hello"):
        self.greeting = greeting

    @capability
    def greet(self, name: str) -> str:
        return f"{self.greeting} {name}"

    @staticmethod
    @capability
    def fixed() -> int:
        return 1

    @classmethod
    @capability
    def kind(cls) -> str:
        return cls.__name__

    def dropped(self) -> str:
        return "not offered"

    @property
    def trap(self):
        raise AssertionError("properties are not touched")


def test_methods_of_an_object_are_bound_base_classes_first():
    found = collect(Agent("hi"))
    assert [d.manifest.name for d in found] == ["first", "greet", "fixed", "kind"]
    greet = found[1].handler
    assert isinstance(greet, FunctionHandler)
    assert greet.function(**greet.arguments("Ada")) == "hi Ada"
    assert found[3].handler.function() == "Agent"


def test_a_class_is_made_without_arguments():
    assert names(Agent) == ["first", "greet", "fixed", "kind"]


def test_a_class_that_needs_arguments_is_refused():
    class Needy:
        def __init__(self, key):
            self.key = key

    with pytest.raises(UsageError, match="cannot be made without arguments"):
        collect(Needy)


def test_a_module_gives_what_is_decorated_once_in_order():
    module = types.ModuleType("tools")
    module.count = count
    module.echo = echo
    module.alias = echo
    module.plain = len
    module.Agent = Agent
    module.group = AgentDefinition.of("group", [Agent()])
    assert names(module) == ["count-words", "echo", "first", "greet", "fixed", "kind"]


def test_an_undecorated_function_counts_when_named_itself():
    def plain(text: str) -> str:
        return text

    assert names(plain) == ["plain"]
    assert names([plain, (count,)]) == ["plain", "count-words"]


def test_a_callable_object_can_be_decorated():
    class Tool:
        def __call__(self, text: str) -> str:
            return text

    assert names(capability("tool")(Tool())) == ["tool"]


def test_an_agent_names_what_names_none():
    agent = AgentDefinition.of("helper", echo, count)
    assert [d.manifest.agent for d in agent.capabilities] == ["helper", "counter"]
    assert names(agent) == ["echo", "count-words"]
    with pytest.raises(UsageError, match="agent"):
        AgentDefinition.of("not a name", echo)


def test_definitions_pass_through_collect():
    (found,) = collect(echo)
    assert collect([found, found]) == (found,)


def test_two_capabilities_of_one_name_are_refused():
    other = capability("echo")(functools.partial(count))
    with pytest.raises(UsageError, match="two capabilities are named 'echo'"):
        collect([echo, other])


@pytest.mark.parametrize("source", [types.ModuleType("empty"), object(), [], "text", {"a": echo}])
def test_a_source_without_capabilities_is_refused(source):
    with pytest.raises(UsageError, match="offers no capability"):
        collect(source)


def test_generators_are_streams_whose_schema_is_that_of_a_part():
    def some() -> Iterator[int]:
        yield 1

    async def more() -> AsyncIterator[str]:
        yield "1"

    def untyped():
        yield 1

    for function, kind, is_async in ((some, "integer", False), (more, "string", True)):
        made = define(function)
        assert made.manifest.streaming
        assert made.manifest.output_schema == {"type": kind}
        assert (made.handler.is_stream, made.handler.is_async) == (True, is_async)
    assert define(untyped).manifest.streaming
    assert not define(echo).manifest.streaming


def test_the_decorator_refuses_what_it_cannot_offer():
    with pytest.raises(UsageError, match="staticmethod"):
        capability(staticmethod(len))
    with pytest.raises(UsageError, match="decorates functions"):
        capability(Agent)
    with pytest.raises(UsageError, match="type int"):
        capability("three")(3)
    with pytest.raises(UsageError, match="not a valid name"):
        capability("two words")
    with pytest.raises(UsageError, match="agent"):
        capability(agent="two words")
    with pytest.raises(UsageError, match="tags must be"):
        capability(tags=[1])


def test_manifests_out_of_bounds_are_refused_when_defined():
    with pytest.raises(UsageError, match="timeout_s"):
        define(echo, Declaration(timeout_s=0))


def test_manifests_are_json():
    for definition in collect([echo, count]):
        assert msgspec.json.decode(msgspec.json.encode(definition.manifest))["name"]


def test_remote_handlers_are_values():
    async def call(capability, value, timeout_s):
        return value

    assert RemoteHandler(call, "a") == RemoteHandler(call, "a")
