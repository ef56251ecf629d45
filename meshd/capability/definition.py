"""A capability together with what runs it, made from decorated Python functions."""

import inspect
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Final, TypedDict, TypeVar, Unpack, overload

import msgspec

from meshd.capability.manifest import PROFICIENCY_DEFAULT, Manifest, check_manifest
from meshd.capability.schema import describe
from meshd.errors import UsageError
from meshd.model import check_name
from meshd.sink import Sink

MARK: Final = "__meshd_capability__"
"""The attribute under which a decorated function carries its `Declaration`."""

TIMEOUT_DEFAULT_S = 300.0

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class FunctionHandler:
    """A Python function in this process; `arguments` turns a JSON input into its keywords.

    `is_stream` is set of generators, plain and asynchronous: what they yield are partial results.
    `executor` says where else than in a thread a plain one runs: see `meshd.work.pools`.
    """

    function: Callable[..., Any]
    is_async: bool
    arguments: Callable[[Any], dict[str, Any]]
    is_stream: bool = False
    executor: str = ""


@dataclass(frozen=True, slots=True)
class CommandHandler:
    """A program to run, without a shell: input on stdin, result on stdout.

    Attributes:
        argv: program and arguments.
        cwd: where it runs; None is the daemon's own directory.
        env: added to the daemon's own environment.
        is_stream: each line on stdout is a partial result.
        memory_bytes: of address space that it may take; 0 is no bound.
    """

    argv: tuple[str, ...]
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    is_stream: bool = False
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class HttpHandler:
    """A URL that takes the input as a JSON body by POST and answers with the result."""

    url: str


@dataclass(frozen=True, slots=True)
class RemoteHandler:
    """A function in a program that is attached to this daemon.

    `call(capability, input, timeout_s, sink)` runs it there; `owner` names the attachment, whose
    end takes its capabilities away.
    """

    call: Callable[[str, Any, float, Sink | None], Awaitable[Any]]
    owner: Hashable


Handler = FunctionHandler | CommandHandler | HttpHandler | RemoteHandler


@dataclass(frozen=True, slots=True)
class CapabilityDefinition:
    """A manifest and its handler; `check` raises UsageError for an input that its schema refuses.

    Functions need no `check`: their type hints say the same.
    """

    manifest: Manifest
    handler: Handler
    check: Callable[[Any], None] | None = None


@dataclass(frozen=True, slots=True)
class AgentDefinition:
    """Capabilities under an agent's name: what calls to them say did the work."""

    name: str
    capabilities: tuple[CapabilityDefinition, ...]

    @classmethod
    def of(cls, name: str, *sources: Any) -> "AgentDefinition":
        """The agent `name` with all that `collect` finds in `sources`.

        Raises:
            UsageError: the name is invalid, or `collect` found a fault.
        """
        check_name(name, "agent")
        return cls(name, tuple(named_for(name, collect(sources))))


class Worth(TypedDict, total=False):
    """What a capability costs and what it is good for; see `Manifest`."""

    cost_usd_per_call: float
    cost_usd_per_unit: float
    unit: str
    proficiency: float
    attributes: Mapping[str, str | Iterable[str]]


@dataclass(frozen=True, slots=True)
class Declaration:
    """What the decorator was told; empty fields are filled from the function itself."""

    name: str = ""
    version: str = "1.0.0"
    description: str = ""
    tags: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    idempotent: bool = False
    timeout_s: float = TIMEOUT_DEFAULT_S
    concurrency: int = 0
    rate_per_s: float = 0.0
    executor: str = ""
    agent: str = ""
    worth: Worth = field(default_factory=Worth)


@overload
def capability(name: FunctionT, /) -> FunctionT: ...
@overload
def capability(
    name: str | None = None,
    /,
    *,
    version: str = "1.0.0",
    description: str = "",
    tags: Iterable[str] = (),
    examples: Iterable[str] = (),
    idempotent: bool = False,
    timeout_s: float = TIMEOUT_DEFAULT_S,
    concurrency: int = 0,
    rate_per_s: float = 0.0,
    executor: str = "",
    agent: str = "",
    **worth: Unpack[Worth],
) -> Callable[[FunctionT], FunctionT]: ...
def capability(
    name: Any = None,
    /,
    *,
    version: str = "1.0.0",
    description: str = "",
    tags: Iterable[str] = (),
    examples: Iterable[str] = (),
    idempotent: bool = False,
    timeout_s: float = TIMEOUT_DEFAULT_S,
    concurrency: int = 0,
    rate_per_s: float = 0.0,
    executor: str = "",
    agent: str = "",
    **worth: Unpack[Worth],
) -> Any:
    """Offer a function or method to the mesh: `@capability` or `@capability("name", ...)`.

    The function itself is returned unchanged, so it stays callable and typed. Name and
    description default to the function's own name and the first line of its docstring. A plain
    function runs in a thread, or where `executor` says: "process", or "dask:tcp://HOST:PORT".
    `worth` is what a call costs (`cost_usd_per_call`, `cost_usd_per_unit` and the `unit`'s name),
    how hard the work may be (`proficiency`, 0..1), and what it is good for (`attributes`).

    Raises:
        UsageError: the name is invalid, or what is decorated is no function.
        TypeError: a keyword is unknown.
    """
    if callable(name) or isinstance(name, staticmethod | classmethod):
        return _mark(name, Declaration())
    declaration = Declaration(
        name=check_name(name, "capability") if name is not None else "",
        version=version,
        description=description,
        tags=_texts(tags, "tags"),
        examples=_texts(examples, "examples"),
        idempotent=idempotent,
        timeout_s=timeout_s,
        concurrency=concurrency,
        rate_per_s=rate_per_s,
        executor=_executor(executor),
        agent=check_name(agent, "agent") if agent else "",
        worth=_known(worth),
    )
    return lambda function: _mark(function, declaration)


def define(
    function: Callable[..., Any], declaration: Declaration | None = None
) -> CapabilityDefinition:
    """The capability that a function offers, decorated or not.

    Raises:
        UsageError: its name, signature or types do not allow that; the message says why.
    """
    told = declaration or getattr(function, MARK, None) or Declaration()
    name = told.name or getattr(function, "__name__", "")
    is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    is_stream = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
    if told.executor:
        _check_movable(function, name, told.executor, is_plain=not (is_async or is_stream))
    schema = describe(function, name, is_stream=is_stream)
    manifest = Manifest(
        name=name,
        version=told.version,
        description=told.description or _first_line(function),
        agent=told.agent,
        tags=told.tags,
        examples=told.examples,
        input_schema=schema.input_schema,
        output_schema=schema.output_schema,
        idempotent=told.idempotent,
        # 5 and 5.0 are one bound, and must be one digest wherever the manifest is read again.
        timeout_s=float(told.timeout_s),
        concurrency=told.concurrency,
        rate_per_s=float(told.rate_per_s),
        streaming=is_stream,
        cost_usd_per_call=float(told.worth.get("cost_usd_per_call", 0.0)),
        cost_usd_per_unit=float(told.worth.get("cost_usd_per_unit", 0.0)),
        unit=told.worth.get("unit", ""),
        proficiency=float(told.worth.get("proficiency", PROFICIENCY_DEFAULT)),
        attributes=_attributes(told.worth.get("attributes", {})),
    )
    handler = FunctionHandler(function, is_async, schema.arguments, is_stream, told.executor)
    return CapabilityDefinition(check_manifest(manifest), handler)


def collect(source: Any) -> tuple[CapabilityDefinition, ...]:
    """All capabilities in a module, object, class, function, definition, or iterable of these.

    A function counts whether decorated or not; in modules and objects only what is decorated
    does. A class is made an object of first, without arguments. Order is the source's own.

    Raises:
        UsageError: there are none, two share a name, or one is faulty.
    """
    found: dict[str, CapabilityDefinition] = {}
    for definition in _find(source):
        name = definition.manifest.name
        if name in found and found[name] is not definition:
            raise UsageError(
                f"two capabilities are named {name!r}",
                hint='give one of them another name: @capability("other-name")',
            )
        found[name] = definition
    if not found:
        raise UsageError(
            f"{_label(source)} offers no capability",
            hint="decorate its functions or methods with @capability",
        )
    return tuple(found.values())


def named_for(
    agent: str, definitions: Iterable[CapabilityDefinition]
) -> Iterator[CapabilityDefinition]:
    """The definitions with the agent's name in every manifest that names none."""
    for definition in definitions:
        if definition.manifest.agent:
            yield definition
        else:
            manifest = msgspec.structs.replace(definition.manifest, agent=agent)
            yield replace(definition, manifest=manifest)


def _mark(function: Any, declaration: Declaration) -> Any:
    if isinstance(function, staticmethod | classmethod):
        raise UsageError(
            "@capability stands above @staticmethod or @classmethod",
            hint="put @capability below it, directly above the function",
        )
    if not callable(function) or isinstance(function, type):
        raise UsageError(
            f"@capability decorates functions and methods, not {_label(function)}",
            hint="decorate the class's methods",
        )
    setattr(function, MARK, declaration)
    return function


def _find(source: Any) -> Iterator[CapabilityDefinition]:
    if isinstance(source, CapabilityDefinition):
        yield source
    elif isinstance(source, AgentDefinition):
        yield from named_for(source.name, source.capabilities)
    elif isinstance(source, ModuleType):
        yield from _in_module(source)
    elif isinstance(source, type):
        yield from _in_object(_make(source))
    elif inspect.isroutine(source) or hasattr(source, MARK):
        yield define(source)
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes | Mapping):
        for part in source:
            yield from _find(part)
    else:
        yield from _in_object(source)


def _in_module(module: ModuleType) -> Iterator[CapabilityDefinition]:
    seen: list[Any] = []
    for value in vars(module).values():
        is_offer = isinstance(value, CapabilityDefinition | AgentDefinition)
        is_marked = inspect.isroutine(value) and hasattr(value, MARK)
        # One function under two names of a module is one capability.
        if (is_offer or is_marked) and not any(value is other for other in seen):
            seen.append(value)
            yield from _find(value)


def _in_object(source: Any) -> Iterator[CapabilityDefinition]:
    """Decorated methods, base classes first, without touching properties."""
    names: dict[str, None] = {}
    for kind in reversed(type(source).__mro__):
        for name, value in vars(kind).items():
            inner = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if inspect.isroutine(inner) and hasattr(inner, MARK):
                names[name] = None
            else:
                # A subclass that overrides a method without the decorator takes it back.
                names.pop(name, None)
    for name in names:
        yield define(getattr(source, name))


def _make(kind: type) -> Any:
    try:
        return kind()
    except TypeError as error:
        raise UsageError(
            f"class {kind.__name__} cannot be made without arguments: {error}",
            hint="pass an object of it instead of the class",
        ) from error


def _executor(text: str) -> str:
    """Threads are what plain functions run in anyway."""
    return "" if text == "thread" else text


def _check_movable(
    function: Callable[..., Any], name: str, executor: str, *, is_plain: bool
) -> None:
    """See that a function can run in another process.

    Raises:
        UsageError: it cannot.
    """
    if not is_plain:
        raise UsageError(
            f"{name}: executor={executor!r} is for plain functions",
            hint="leave it out for async functions and generators, or return all at once",
        )
    if "<locals>" in getattr(function, "__qualname__", "") or "<lambda>" in name:
        raise UsageError(
            f"{name}: another process cannot import what is defined within a function",
            hint=f"define {name} at its module's top, or leave executor out",
        )


def _known(worth: Worth) -> Worth:
    unknown = sorted(worth.keys() - Worth.__annotations__.keys())
    if unknown:
        raise TypeError(f"capability() got an unexpected keyword argument {unknown[0]!r}")
    return worth


def _attributes(given: Mapping[str, str | Iterable[str]]) -> dict[str, str | tuple[str, ...]]:
    return {
        name: value if isinstance(value, str) else _texts(value, f"attribute {name!r}")
        for name, value in given.items()
    }


def _texts(values: Iterable[str], what: str) -> tuple[str, ...]:
    # A bare string is an iterable of letters, which nobody means.
    texts = (values,) if isinstance(values, str) else tuple(values)
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(f"{what} must be a list of texts")
    return texts


def _first_line(function: Callable[..., Any]) -> str:
    lines = (inspect.getdoc(function) or "").strip().splitlines()
    return lines[0].strip() if lines else ""


def _label(value: Any) -> str:
    name = getattr(value, "__name__", None)
    if name is not None:
        return f"{'module' if isinstance(value, ModuleType) else type(value).__name__} {name!r}"
    return f"an object of type {type(value).__name__}"
