"""JSON Schema of a Python function, and the strict way from a JSON input to its arguments."""

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import msgspec

from meshd.errors import Code, PeerError, UsageError

PARAMETERS_MAX = 64
FAULTS_MAX = 10
FAULT_CHARS_MAX = 200
TEXT_KEY = "text"
"""The one key of the plain form `{text: ...}`, which fits every function of one parameter."""

_REF = "#/$defs/{name}"

_PLAIN = frozenset((str, int, float, bool))
"""A value of exactly such a type is JSON, and fits a parameter of this type as it is."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its name, its type for msgspec, that type's schema, and whether it is due."""

    name: str
    kind: Any
    schema: dict[str, Any]
    required: bool


@dataclass(frozen=True, slots=True)
class FunctionSchema:
    """What a function takes and gives, as JSON.

    `extra` stands for `**kwargs`: the parameter that takes every name not listed, or None.
    `sole` is the name of the only parameter, or of the only required one, or None; `for_text` is
    the same where its value may also come in the plain form `{text: ...}`.
    """

    name: str
    parameters: tuple[Parameter, ...]
    extra: Parameter | None
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    sole: str | None
    for_text: str | None

    def arguments(self, value: Any) -> dict[str, Any]:
        """Keyword arguments for a JSON input.

        An input that is no object goes to the only parameter (or the only required one), and so
        does the value of the plain form `{text: ...}`; null means no arguments where none are due.

        Raises:
            UsageError: definite; it names each wrong, missing and unknown parameter.
        """
        given = self._as_object(value)
        faults: list[str] = []
        found: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.name in given:
                _convert(parameter, parameter.name, given[parameter.name], found, faults)
            elif parameter.required:
                faults.append(f"missing parameter {parameter.name!r}")
        # Most inputs name what is known and nothing else.
        if len(found) < len(given):
            self._take_others(given, found, faults)
        if faults:
            raise self._refuse("; ".join(faults[:FAULTS_MAX]))
        return found

    def accepts(self) -> str:
        """What the function takes, in one line for people."""
        parts = [
            f"{p.name} ({_spell(p.schema)}, {'required' if p.required else 'optional'})"
            for p in self.parameters
        ]
        if self.extra is not None:
            parts.append("further names freely")
        return "it takes " + (", ".join(parts) if parts else "no parameters")

    def _take_others(
        self, given: Mapping[Any, Any], found: dict[str, Any], faults: list[str]
    ) -> None:
        """What is given under names that are not listed."""
        known = [p.name for p in self.parameters]
        for name in given:
            if name in known:
                continue
            if self.extra is not None and isinstance(name, str):
                _convert(self.extra, name, given[name], found, faults)
            else:
                faults.append(f"unknown parameter {_cut(repr(name))}{_suggest(name, known)}")

    def _as_object(self, value: Any) -> Mapping[Any, Any]:
        # Nearly all are dicts, and asking an abstract class takes much longer.
        if type(value) is dict or isinstance(value, Mapping):
            if self.for_text is not None and len(value) == 1 and TEXT_KEY in value:
                return {self.for_text: value[TEXT_KEY]}
            return value
        if value is None and not any(p.required for p in self.parameters):
            return {}
        if self.sole is not None:
            return {self.sole: value}
        raise self._refuse("the input must be a JSON object with a key for each parameter")

    def _refuse(self, why: str) -> UsageError:
        return UsageError(f"{self.name}: {why}", hint=self.accepts(), code=Code.INVALID_PARAMS)


def describe(
    function: Callable[..., Any], name: str = "", *, is_stream: bool = False
) -> FunctionSchema:
    """The schema of a function, bound method, partial or callable object.

    Of a generator (`is_stream`) the output schema is that of what it yields.

    Raises:
        UsageError: it cannot be called with a JSON object: it takes `*args` or positional-only
            parameters, a type has no JSON form, or its annotations cannot be read.
    """
    label = name or getattr(function, "__name__", type(function).__name__)
    signature = _signature(function, label)
    hints = _hints(function, label)
    if len(signature.parameters) > PARAMETERS_MAX:
        raise UsageError(f"{label} has more than {PARAMETERS_MAX} parameters")
    listed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    open_ones = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    _check_kinds(listed, label)
    kinds = {p.name: _kind(p, hints) for p in (*listed, *open_ones)}
    schemas, components = _schemas(kinds, label)
    parameters = tuple(
        Parameter(p.name, kinds[p.name], _with_default(schemas[p.name], p), p.default is p.empty)
        for p in listed
    )
    extra = None
    if open_ones:
        only = open_ones[0].name
        extra = Parameter(only, kinds[only], schemas[only], required=False)
    sole = _sole(parameters)
    # A parameter of that name takes it as every other value.
    has_plain_form = extra is None and TEXT_KEY not in kinds
    return FunctionSchema(
        name=label,
        parameters=parameters,
        extra=extra,
        input_schema=_input_schema(parameters, extra, components),
        output_schema=_output_schema(
            _yielded(hints.get("return", Any)) if is_stream else hints.get("return", Any)
        ),
        sole=sole,
        for_text=sole if has_plain_form else None,
    )


def to_json(value: Any, name: str) -> Any:
    """A handler's result as JSON values (dict, list, str, int, float, bool, None).

    Raises:
        PeerError: the result has no JSON form. Indefinite: the handler has run.
    """
    if type(value) in _PLAIN:
        return value
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_encode_hook)
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise PeerError(
            f"{name}: the result is not JSON: {_cut(str(error))}",
            hint="return dicts, lists, text, numbers, booleans, None, dataclasses or Structs",
            definite=False,
        ) from error


def _sole(parameters: tuple[Parameter, ...]) -> str | None:
    required = [p.name for p in parameters if p.required]
    names = required or [p.name for p in parameters]
    return names[0] if len(names) == 1 else None


def _signature(function: Callable[..., Any], label: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{label} has no signature that Python can read",
            hint="wrap it in a function with named parameters",
        ) from error


def _hints(function: Callable[..., Any], label: str) -> dict[str, Any]:
    target: Any = function
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(inspect.unwrap(target), include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise UsageError(
            f"{label}: its type hints cannot be read: {_cut(str(error))}",
            hint="import the types at the top of the module, not under TYPE_CHECKING or inside "
            "a function",
        ) from error


def _check_kinds(parameters: list[inspect.Parameter], label: str) -> None:
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise UsageError(
                f"{label} takes *{parameter.name}, which no JSON object can name",
                hint=f"take one parameter that is a list instead: {parameter.name}: list",
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise UsageError(
                f"{label}: parameter {parameter.name!r} cannot be passed by name",
                hint="remove the / from its signature",
            )


def _kind(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    kind = hints.get(parameter.name, Any)
    # `limit: int = None` is common and means an optional value.
    return kind | None if parameter.default is None and kind is not Any else kind


def _schemas(
    kinds: Mapping[str, Any], label: str
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    # One by one first, so that a fault names its parameter; then together, for shared components.
    for name, kind in kinds.items():
        _require_json(name, kind, label)
    schemas, components = _components(tuple(kinds.values()))
    return dict(zip(kinds, schemas, strict=True)), components


def _require_json(name: str, kind: Any, label: str) -> None:
    try:
        _components((kind,))
    except (TypeError, NotImplementedError, RecursionError) as error:
        raise UsageError(
            f"{label}: the type of parameter {name!r} has no JSON form: "
            f"{_cut(str(error).splitlines()[-1] if str(error) else type(error).__name__)}",
            hint="use text, numbers, booleans, lists, dicts, dataclasses, TypedDicts, Structs, "
            "or leave it without a type",
        ) from error


def _components(kinds: tuple[Any, ...]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    return msgspec.json.schema_components(kinds, schema_hook=_schema_hook, ref_template=_REF)


def _input_schema(
    parameters: tuple[Parameter, ...], extra: Parameter | None, components: dict[str, Any]
) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {p.name: p.schema for p in parameters},
        "required": [p.name for p in parameters if p.required],
        "additionalProperties": False if extra is None else (extra.schema or True),
    }
    return {**schema, "$defs": components} if components else schema


def _yielded(kind: Any) -> Any:
    """`T` of `Iterator[T]`, `AsyncGenerator[T, None]` and the like."""
    return next(iter(typing.get_args(kind)), Any)


def _output_schema(kind: Any) -> dict[str, Any]:
    try:
        (schema,), components = _components((kind,))
    except (TypeError, NotImplementedError, RecursionError):
        # What comes back is converted anyhow; a return type that nobody can describe is no fault.
        return {}
    return {**schema, "$defs": components} if components else schema


def _with_default(schema: dict[str, Any], parameter: inspect.Parameter) -> dict[str, Any]:
    if parameter.default is parameter.empty:
        return schema
    try:
        default = msgspec.json.decode(msgspec.json.encode(parameter.default, enc_hook=_encode_hook))
    except (TypeError, ValueError, NotImplementedError, RecursionError):
        return schema
    return {**schema, "default": default}


def _convert(
    parameter: Parameter, name: str, value: Any, found: dict[str, Any], faults: list[str]
) -> None:
    kind = parameter.kind
    if kind is Any or (type(value) is kind and kind in _PLAIN):
        found[name] = value
        return
    try:
        found[name] = msgspec.convert(
            value, kind, strict=True, str_keys=True, dec_hook=_decode_hook
        )
    except (msgspec.ValidationError, NotImplementedError, RecursionError) as error:
        faults.append(f"parameter {name!r}: {_cut(str(error))}")


def _is_path(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, PurePath)


def _schema_hook(kind: Any) -> dict[str, Any]:
    if _is_path(kind):
        return {"type": "string"}
    raise NotImplementedError(f"{kind!r} has no JSON form")


def _decode_hook(kind: Any, value: Any) -> Any:
    if _is_path(kind) and isinstance(value, str):
        return kind(value)
    raise NotImplementedError(f"Expected `{getattr(kind, '__name__', kind)}`")


def _encode_hook(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    raise NotImplementedError(f"objects of type {type(value).__name__} have no JSON form")


def _suggest(name: Any, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name)[:FAULT_CHARS_MAX], known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _spell(schema: Mapping[str, Any]) -> str:
    """A schema's kind in a few words: `text`-like names of JSON, not of Python."""
    if "enum" in schema:
        return "one of " + ", ".join(repr(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_spell(part) for part in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    return str(schema.get("type", "any"))


def _cut(text: str) -> str:
    return text if len(text) <= FAULT_CHARS_MAX else text[: FAULT_CHARS_MAX - 1] + "…"
