"""What the simulator's commands share: options, the choice of a plan, progress, output."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import click

from meshd.errors import UsageError

if TYPE_CHECKING:
    from sim.plan import Plan

OK, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes, as for all of meshd's commands."""
NODES_MIN, NODES_MAX = 2, 20_000
DURATION_MIN_S, DURATION_MAX_S = 5.0, 86_400.0
SEED_MAX = 2**63 - 1
BAR_COLUMNS = 24
REDRAW_S = 0.2
LINE_S = 5.0
Command = Callable[..., Any]


def examples(*lines: str) -> str:
    """The end of a command's help: commands to copy, set as they are."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def duration(text: str) -> float:
    """Seconds of `60s`, `2m`, `1.5h` or `7500ms`.

    Raises:
        BadParameter: it is none of these, or longer or shorter than a run can be.
    """
    from sim.scenario_file import seconds

    found = seconds(text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a duration; write 60s, 2m or 1h")
    if not DURATION_MIN_S <= found <= DURATION_MAX_S:
        span = f"{DURATION_MIN_S:g}s to {DURATION_MAX_S / 3600:g}h"
        raise click.BadParameter(f"{text!r} is out of range: a run takes {span}")
    return found


def share(text: str) -> float:
    """A number from 0 to 1.

    Raises:
        BadParameter: it is none.
    """
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise click.BadParameter(f"{text!r} is not a share: write a number from 0 to 1, as 0.03")
    return found


def plan_options(function: Command) -> Command:
    """--nodes, --seed, --duration, --loss."""
    options = (
        click.option(
            "--nodes",
            type=click.IntRange(NODES_MIN, NODES_MAX),
            metavar="N",
            help="How many nodes; each scenario has its own default.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, SEED_MAX),
            metavar="S",
            help="What everything follows from (default 0, or the file's).",
        ),
        click.option(
            "--duration",
            "duration_s",
            type=duration,
            metavar="TIME",
            help="How long faults may happen, in virtual time: 60s, 2m. Settling comes on top.",
        ),
        click.option("--loss", type=share, metavar="SHARE", help="Share of packets lost, 0 to 1."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def out_option(text: str) -> Callable[[Command], Command]:
    """--out DIR."""
    return click.option("--out", type=click.Path(), metavar="DIR", help=text)


def json_option(function: Command) -> Command:
    """--json, as the argument `as_json`."""
    text = "End with one JSON object in the last line."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def complete_scenarios(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Names of scenarios, for the shell."""
    del context, parameter
    from sim.scenarios import SCENARIOS

    return [name for name in SCENARIOS if name.startswith(incomplete)]


def scenario_argument(
    *, metavar: str = "SCENARIO", default: str | None = None
) -> Callable[[Command], Command]:
    """SCENARIO: a name of `meshd sim list`, or a path that ends in .toml."""
    # A default of None would count as one that was given.
    left_out: dict[str, Any] = {} if default is None else {"required": False, "default": default}
    return click.argument(
        "scenario", metavar=metavar, shell_complete=complete_scenarios, **left_out
    )


# Which plan


@dataclass(frozen=True, slots=True)
class Chosen:
    """A scenario as the user named it, with what the options say."""

    scenario: str
    nodes: int | None = None
    seed: int | None = None
    duration_s: float | None = None
    loss: float | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a path and not a name."""
        return self.scenario.endswith(".toml")

    def plan(self, seed: int | None = None) -> "Plan":
        """The plan that follows; with `seed`, of that one.

        Raises:
            UsageError: there is no such scenario, or no plan can be made of the file.
        """
        seed = self.seed if seed is None else seed
        return self._from_file(seed) if self.is_file else self._by_name(seed or 0)

    def _by_name(self, seed: int) -> "Plan":
        from sim.scenarios import SCENARIOS

        scenario = SCENARIOS.get(self.scenario)
        if scenario is None:
            near = get_close_matches(self.scenario, SCENARIOS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            hint += "all of them: meshd sim list; the path of a file ends in .toml"
            if Path(self.scenario).is_dir():
                hint = f"a recorded run? meshd sim replay {shlex.quote(self.scenario)}"
            raise UsageError(f"there is no scenario {self.scenario!r}", hint=hint)
        nodes = scenario.nodes if self.nodes is None else self.nodes
        duration_s = scenario.duration_s if self.duration_s is None else self.duration_s
        return scenario.make(nodes, seed, duration_s, self.loss or 0.0)

    def _from_file(self, seed: int | None) -> "Plan":
        from sim.scenario_file import check, load

        plan = load(self.scenario)
        if self.nodes is not None:
            grown = self.nodes if plan.converged == plan.nodes else min(plan.converged, self.nodes)
            plan = replace(plan, nodes=self.nodes, converged=grown)
        if self.loss is not None:
            plan = replace(plan, loss=self.loss, shape=replace(plan.shape, loss=self.loss))
        if self.duration_s is not None:
            plan = replace(plan, duration_s=self.duration_s)
        if seed is not None:
            plan = replace(plan, seed=seed)
        check(plan, self.scenario)
        return plan

    def command(self, plan: "Plan", kept: tuple[int, ...] | None = None) -> str:
        """What replays a plan made of this; `kept` are the numbers of the faults left."""
        only = "" if kept is None else " --faults " + (",".join(map(str, kept)) or "none")
        if not self.is_file:
            return plan.command() + only
        from sim.plan import number

        words = ["meshd", "sim", "replay", shlex.quote(self.scenario), "--seed", str(plan.seed)]
        if self.nodes is not None:
            words += ["--nodes", str(self.nodes)]
        if self.duration_s is not None:
            words += ["--duration", f"{number(self.duration_s)}s"]
        if self.loss is not None:
            words += ["--loss", number(self.loss)]
        return " ".join(words) + only


# Output


class Session(Protocol):
    """What `meshd` hands its commands: here, how the user wants to be talked to."""

    verbosity: int

    def palette(self, stream: TextIO | None = None) -> Any:
        """Colours as they are wanted on a stream."""
        ...


def _session() -> Session | None:
    context = click.get_current_context(silent=True)
    return None if context is None else context.obj


def paint(text: str, style: str) -> str:
    """`text` in a colour, where the user wants colours."""
    session = _session()
    if session is None:
        return text
    painted: str = session.palette(sys.stdout).paint(text, style)
    return painted


def emit(lines: Iterable[str]) -> None:
    """Write lines to stdout."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def emit_json(value: Any) -> None:
    """Write one JSON object in one line."""
    emit([json.dumps(value, separators=(",", ":"))])


def note(text: str) -> None:
    """Tell people something beside the data: on stderr, silent under --quiet."""
    session = _session()
    if session is None or session.verbosity >= 0:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Progress:
    """How far a long run is: a bar on a terminal, else a line every few seconds; on stderr."""

    def __init__(self, label: str) -> None:
        self._label = label
        session = _session()
        self._is_quiet = session is not None and session.verbosity < 0
        self._is_tty = sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown = self._began
        self._wide = 0

    def show(self, done: float, total: float, text: str) -> None:
        """Tell it, unless that was done a moment ago. `done` of `total` gives the time to go."""
        now = time.monotonic()
        if self._is_quiet or now - self._shown < (REDRAW_S if self._is_tty else LINE_S):
            return
        self._shown = now
        share = min(1.0, done / total) if total > 0 else 1.0
        line = f"{self._label} {share:4.0%}  {text}{self._to_go(share, now)}"
        if self._is_tty:
            full = round(share * BAR_COLUMNS)
            bar = "#" * full + "." * (BAR_COLUMNS - full)
            line = line.replace(self._label, f"{self._label} [{bar}]", 1)
            line = line[: shutil.get_terminal_size().columns - 1]
            sys.stderr.write("\r" + line.ljust(self._wide))
            self._wide = len(line)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def _to_go(self, share: float, now: float) -> str:
        if not 0 < share < 1:
            return ""
        left_s = (now - self._began) / share * (1 - share)
        minutes, rest_s = divmod(round(left_s), 60)
        return f", ETA {minutes}m{rest_s:02}s" if minutes else f", ETA {rest_s}s"

    def clear(self) -> None:
        """Take the bar away: something else is printed now."""
        if self._wide:
            sys.stderr.write("\r" + " " * self._wide + "\r")
            sys.stderr.flush()
            self._wide = 0
