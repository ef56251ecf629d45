"""JSON Schema documents as checks of an input; nothing is ever fetched for them."""

from collections.abc import Callable
from itertools import islice
from typing import Any

from meshd.errors import Code, UsageError

FAULTS_MAX = 10
FAULT_CHARS_MAX = 200


def compile_schema(schema: dict[str, Any], name: str) -> Callable[[Any], None]:
    """A check that raises UsageError (definite) for an input that the schema refuses.

    References to other documents are refused: validators fetch them by default, which would let
    a schema make this node read files and call addresses. Patterns run in linear time.

    Raises:
        UsageError: the schema is not valid, or the package that checks it is not installed.
    """
    try:
        import jsonschema_rs
    except ImportError as error:
        raise UsageError(
            f"capability {name!r} declares input_schema, and the package to check it is missing",
            hint="pip install jsonschema-rs, or remove input_schema",
        ) from error
    try:
        validator = jsonschema_rs.validator_for(
            schema, retriever=_deny, pattern_options=jsonschema_rs.RegexOptions()
        )
    except ValueError as error:
        reason = str(error).strip().splitlines()[0][:FAULT_CHARS_MAX]
        raise UsageError(
            f"capability {name!r}: input_schema is not usable: {reason}",
            hint="it must be one JSON Schema document with references only into itself",
        ) from error

    def check(value: Any) -> None:
        try:
            faults = [_spell(fault) for fault in islice(validator.iter_errors(value), FAULTS_MAX)]
        except (ValueError, TypeError) as error:
            faults = [f"it is not JSON: {error}"[:FAULT_CHARS_MAX]]
        if faults:
            raise UsageError(f"{name}: " + "; ".join(faults), code=Code.INVALID_PARAMS)

    return check


def _deny(uri: str) -> Any:
    raise ValueError(f"references to other documents are not followed: {uri}")


def _spell(fault: Any) -> str:
    where = ".".join(str(part) for part in fault.instance_path)
    text = f"{where}: {fault.message}" if where else str(fault.message)
    return text[:FAULT_CHARS_MAX]
