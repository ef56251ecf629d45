"""Rules of style that ruff and mypy do not hold: each takes one module and yields its faults."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
FUNCTION_LINES_USUAL = 30
PLAYS_WORK = "# plays work:"
"""In the same line as a sleep of a test: it stands for work that takes time, it awaits nothing."""

Fault = tuple[int, str]


@dataclass(frozen=True)
class Module:
    """One file of Python, by its path from the repository's root."""

    path: Path
    text: str
    is_pure: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All of the tree's."""
        return list(ast.walk(self.tree))

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def room(self) -> str:
        return self.path.parts[0]


Rule = Callable[[Module], Iterator[Fault]]


def file_is_short(module: Module) -> Iterator[Fault]:
    if len(module.lines) > FILE_LINES_MAX:
        yield len(module.lines), f"the file has more than {FILE_LINES_MAX} lines"


def functions(module: Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    for node in module.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1


def functions_are_short(module: Module) -> Iterator[Fault]:
    for node, lines in functions(module):
        if lines > FUNCTION_LINES_MAX:
            yield node.lineno, f"{node.name} has {lines} lines, more than {FUNCTION_LINES_MAX}"


def opens_with_a_sentence(module: Module) -> Iterator[Fault]:
    lines = (ast.get_docstring(module.tree, clean=True) or "").splitlines()
    if not lines or not lines[0].endswith((".", "?", "!")) or (lines[1:] and lines[1]):
        yield 1, "the file does not open with a docstring of one sentence in one line"


def imports_are_absolute(module: Module) -> Iterator[Fault]:
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "a relative import"


def init_only_re_exports(module: Module) -> Iterator[Fault]:
    if module.path.name != "__init__.py":
        return
    may_be_there = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    lazy = module.path.parts in {("meshd", "__init__.py"), ("meshd", "cli", "__init__.py")}
    for node in module.tree.body:
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        is_lazy = (
            lazy and isinstance(node, ast.FunctionDef) and node.name in {"__getattr__", "main"}
        )
        if not (isinstance(node, may_be_there) or is_text or is_typing or is_lazy):
            yield node.lineno, "an __init__ does more than re-export"


def errors_are_not_swallowed(module: Module) -> Iterator[Fault]:
    for node in module.nodes:
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "a bare except"
        elif isinstance(node, ast.ExceptHandler) and _catches_all(node.type):
            if all(isinstance(step, ast.Pass | ast.Continue) for step in node.body):
                yield node.lineno, "an except that swallows everything"
        elif isinstance(node, ast.Call) and _suppresses_all(node):
            yield node.lineno, "a suppress that swallows everything"


def only_output_prints(module: Module) -> Iterator[Fault]:
    if module.room != "meshd" or module.path == Path("meshd/cli/output.py"):
        return
    for node in module.nodes:
        if isinstance(node, ast.Call) and _name(node.func) == "print":
            yield node.lineno, "a print outside cli/output.py"


def pure_modules_stay_pure(module: Module) -> Iterator[Fault]:
    if not module.is_pure:
        return
    waits = ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
    for node in module.nodes:
        if isinstance(node, waits):
            yield node.lineno, "async in a pure module"
        elif isinstance(node, ast.comprehension) and node.is_async:
            yield node.target.lineno, "async in a pure module"
        elif isinstance(node, ast.Call) and _name(node.func) in {"open", "input"}:
            yield node.lineno, "a pure module reads from outside"
    yield from _hidden_chance(module)


def _hidden_chance(module: Module) -> Iterator[Fault]:
    """Uses of the module random but for its class Random, which is injected."""
    taken = [node for node in module.nodes if isinstance(node, ast.Import)]
    named = {a.asname or a.name for node in taken for a in node.names if a.name == "random"}
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and _name(node.value) in named and node.attr != "Random":
            yield node.lineno, f"random.{node.attr} in a pure module: only an injected Random"
        elif isinstance(node, ast.ImportFrom) and node.module == "random":
            more = [alias.name for alias in node.names if alias.name != "Random"]
            yield from ((node.lineno, f"random.{name} in a pure module") for name in more)


def tests_do_not_sleep(module: Module) -> Iterator[Fault]:
    if module.room != "tests":
        return
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and any(alias.name == "sleep" for alias in node.names):
            yield node.lineno, "sleep imported by name"
        if not isinstance(node, ast.Call) or _name(node.func) not in {
            "time.sleep",
            "asyncio.sleep",
        }:
            continue
        yields_only = _name(node.func) == "asyncio.sleep" and _is_zero(node.args)
        if not yields_only and PLAYS_WORK not in module.lines[node.lineno - 1]:
            yield node.lineno, f"a sleep in a test (await the event; or say `{PLAYS_WORK} why`)"


def tests_use_fakes(module: Module) -> Iterator[Fault]:
    if module.room != "tests":
        return
    for node in module.nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if any(name.startswith(("unittest.mock", "mock.")) for name in names):
            yield node.lineno, "a mock: put a fake at a seam instead"


RULES: tuple[Rule, ...] = (
    file_is_short,
    functions_are_short,
    opens_with_a_sentence,
    imports_are_absolute,
    init_only_re_exports,
    errors_are_not_swallowed,
    only_output_prints,
    pure_modules_stay_pure,
    tests_do_not_sleep,
    tests_use_fakes,
)

# Written so that this file does not match itself.
_FOREIGN = re.compile(
    r"/roo[t]/|/hom[e]/[a-z]|/User[s]/[A-Za-z]|[A-Z]:\\User[s]\\|(?<!meshd)/wor[k]/"
    r"|pypi\.or[g]|pythonhosted\.or[g]|index-ur[l]"
)


def names_no_machine(text: str) -> Iterator[Fault]:
    """Find paths of one person's machine and hosts that packages came from, in any text file."""
    for number, line in enumerate(text.splitlines(), start=1):
        if found := _FOREIGN.search(line):
            yield number, f"{found.group()} belongs to one machine"


def _name(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _catches_all(node: ast.expr | None) -> bool:
    kinds = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(kind is not None and _name(kind) in {"Exception", "BaseException"} for kind in kinds)


def _suppresses_all(call: ast.Call) -> bool:
    return _name(call.func).endswith("suppress") and any(map(_catches_all, call.args))


def _is_zero(arguments: list[ast.expr]) -> bool:
    return [ast.unparse(argument) for argument in arguments] == ["0"]
