"""The configuration of `meshd start`: defaults < TOML files < `MESHD_*` < flags, all checked."""

import math
import os
import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from meshd.capability.declared import definitions_from_config
from meshd.discovery.address import parse_advertise, parse_bind, parse_seed
from meshd.errors import UsageError
from meshd.event_handler import VARIABLES, handlers_from_config
from meshd.faults import all_told, converted, meant
from meshd.gossip.config import DATAGRAM_BYTES_MAX, DATAGRAM_BYTES_MIN, GossipConfig
from meshd.model import NAME_CHARS_MAX, Site, is_name, site_faults
from meshd.paths import default_state_dir, expanded, search_paths
from meshd.routing import settings as rules
from meshd.routing.installed import policy_faults
from meshd.routing.policy_file import read_policy_file
from meshd.routing.rules import KINDS, Tables, joined, read_tables, tables_faults, value_faults
from meshd.toml_file import read_toml
from meshd.work.admission import QUEUE_DEFAULT, QUEUE_MAX

ENV_PREFIX = "MESHD_"
CLIENT_VARIABLES = (
    frozenset({"MESHD_CONFIG", "MESHD_SOCKET", "MESHD_NODE", "MESHD_COLOR"}) | VARIABLES
)
"""Variables of the command line itself and of handlers, which are no settings of a node."""

POLICIES = rules.POLICY_NAMES
Profile = Literal["lan", "wan", "local"]
Loop = Literal["auto", "uvloop", "asyncio"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]

FilePath = NewType("FilePath", str)
"""A path; in a TOML file, relative to that file. `~` is the home directory."""


_ROUTING = rules.RoutingSettings()
"""Its own defaults are the defaults here."""


def _about(text: str, **bounds: Any) -> Meta:
    return Meta(description=text, **bounds)


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[node]`: who this node is, where it listens, how it finds others and how much it takes."""

    name: Annotated[str, _about("Label of this node. Default: the host's name.")] = ""
    mesh: Annotated[str, _about("Name of the mesh. Nodes of other meshes are ignored.")] = "default"
    bind: Annotated[
        str,
        _about(
            "IP address and port for gossip (UDP) and calls (TCP): ADDR[:PORT] or :PORT;"
            " port 0 picks a free one."
        ),
    ] = "0.0.0.0:6374"
    advertise: Annotated[
        str,
        _about(
            "IP address[:port] told to others, where they cannot reach `bind` as it is; one IPv4"
            " and one IPv6 address may be given, separated by a comma."
        ),
    ] = ""
    join: Annotated[
        tuple[str, ...],
        _about("Seeds: host[:port] or [IPv6]:port of any nodes of the mesh.", max_length=4096),
    ] = ()
    peers_file: Annotated[
        FilePath, _about("File with one seed a line, read again when it changes.")
    ] = FilePath("")
    mdns: Annotated[bool, _about("Announce and find nodes on the local network.")] = True
    iface: Annotated[
        tuple[str, ...],
        _about("Network interfaces for mDNS. Default: all fit ones.", max_length=64),
    ] = ()
    region: Annotated[str, _about("Where this node is, e.g. eu-west; calls may ask for it.")] = ""
    labels: Annotated[
        dict[str, str],
        _about("What this node is, K=V of any meaning; calls may ask for it.", max_length=16),
    ] = msgspec.field(default_factory=dict)
    profile: Annotated[Profile, _about("Timing of the failure detector.")] = "lan"
    state_dir: Annotated[
        FilePath,
        _about("Directory for key, epoch and known peers. Default: by mesh and name, per user."),
    ] = FilePath("")
    capability: Annotated[
        tuple[str, ...],
        _about("Capabilities to serve: module:object or a TOML file.", max_length=1024),
    ] = ()
    slots: Annotated[
        int, _about("Tasks that run at a time, 0..1024; 0 is one a CPU.", ge=0, le=1024)
    ] = 0
    queue: Annotated[
        int, _about(f"Tasks that may wait for a slot, 0..{QUEUE_MAX}.", ge=0, le=QUEUE_MAX)
    ] = QUEUE_DEFAULT
    drain_s: Annotated[
        float,
        _about("Seconds that a stop waits for running tasks, 0..86400.", ge=0, le=86_400),
    ] = 20.0
    journal: Annotated[
        bool,
        _about("Keep accepted tasks in the state directory, so that they survive a restart."),
    ] = False
    loop: Annotated[Loop, _about("Event loop; auto is uvloop where it is installed.")] = "auto"
    ready_file: Annotated[
        FilePath, _about("File that is written once the node serves, for scripts.")
    ] = FilePath("")


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[log]`: what the daemon writes to standard error."""

    level: Annotated[LogLevel, _about("The least level that is written.")] = "info"
    format: Annotated[LogFormat, _about("key=value text, or one JSON object a line.")] = "text"


class RoutingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[routing]`: how work finds its node where the caller does not say."""

    policy: rules.PolicySetting = "adaptive"
    weights: rules.WeightsSetting = msgspec.field(default_factory=lambda: dict(_ROUTING.weights))
    hops_max: Annotated[
        int,
        _about(
            f"Delegations that one task may go through, 1..{rules.HOPS_MAX}.",
            ge=1,
            le=rules.HOPS_MAX,
        ),
    ] = _ROUTING.hops_max
    hedge: rules.HedgeSetting = _ROUTING.is_hedging
    tiers: rules.TiersSetting = msgspec.field(default_factory=lambda: dict(_ROUTING.tiers))
    shares: rules.SharesSetting = msgspec.field(default_factory=lambda: dict(_ROUTING.shares))
    sample: rules.SampleSetting = _ROUTING.sample
    retries: rules.RetriesSetting = _ROUTING.retries
    deadline_s: rules.DeadlineSetting = _ROUTING.deadline_s
    fallback: rules.FallbackSetting = ()
    cost_usd_max: rules.CostSetting = _ROUTING.cost_usd_max
    spend: Annotated[
        dict[str, float],
        _about(f"What may be spent, USD: {', '.join(rules.SPEND_CAPS)}. Default: no bound."),
    ] = msgspec.field(default_factory=dict)
    policy_file: Annotated[
        FilePath, _about("File of policies by capability, read again when it changes.")
    ] = FilePath("")
    capability: Annotated[
        dict[str, rules.Overrides],
        _about("What some capabilities have of their own, written [routing.capability.NAME]."),
    ] = msgspec.field(default_factory=dict)
    breaker: rules.BreakerSettings = _ROUTING.breaker


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[limits]`: bounds on what others may ask of this node."""

    datagram_bytes_max: Annotated[
        int,
        _about(
            f"Bytes of a gossip datagram, {DATAGRAM_BYTES_MIN}..{DATAGRAM_BYTES_MAX}.",
            ge=DATAGRAM_BYTES_MIN,
            le=DATAGRAM_BYTES_MAX,
        ),
    ] = GossipConfig().datagram_bytes_max
    body_bytes_max: Annotated[
        int,
        _about("Bytes of a call's body, 1 KiB..256 MiB.", ge=1024, le=256 * 1024 * 1024),
    ] = 4 * 1024 * 1024
    batch_max: Annotated[int, _about("Calls in one batch, 1..1000.", ge=1, le=1000)] = 50
    depth_max: Annotated[int, _about("Nesting of a call's JSON, 8..512.", ge=8, le=512)] = 64
    calls_max: Annotated[int, _about("Calls served at a time, 1..100000.", ge=1, le=100_000)] = 256
    members_max: Annotated[
        int, _about("Members that the table holds, 2..100000.", ge=2, le=100_000)
    ] = GossipConfig().members_max


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `meshd start` can be told.

    `capability` and `handler` hold the `[[capability]]` and `[[handler]]` tables of the TOML file
    as they are; they were checked.
    """

    node: NodeConfig = NodeConfig()
    log: LogConfig = LogConfig()
    routing: RoutingConfig = RoutingConfig()
    limits: LimitsConfig = LimitsConfig()
    capability: tuple[dict[str, Any], ...] = ()
    handler: tuple[dict[str, Any], ...] = ()


class Loaded(msgspec.Struct, frozen=True):
    """A checked configuration, where each setting came from, and what was odd but harmless.

    `origins` maps key paths (`node.name`) to `default`, a file's path, `$MESHD_NAME` or `--name`.
    """

    config: Config
    origins: dict[str, str]
    warnings: tuple[str, ...]
    files: tuple[Path, ...]


class Option(msgspec.Struct, frozen=True):
    """One setting: its key path, its flag and variable, and its type."""

    path: str
    option: str
    type: Any
    description: str
    default: Any

    @property
    def section(self) -> str:
        """The table that it stands in, as TOML writes it."""
        return self.path.rpartition(".")[0]

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return ENV_PREFIX + self.option.upper()

    @property
    def flag(self) -> str:
        """Its command line flag; durations are given with their unit there (`--drain 20s`)."""
        return "--" + self.option.removesuffix("_s").replace("_", "-")


_TABLES = ("capability", "handler")
"""Of which a file may hold many, each written [[so]]."""


def options() -> tuple[Option, ...]:
    """All settings, in the order of their sections. `node` needs no prefix in flags."""
    return _OPTIONS


def _options() -> Iterator[Option]:
    for section, kind in get_type_hints(Config).items():
        if section not in _TABLES:
            yield from _options_of(section, kind)


def _options_of(section: str, kind: Any) -> Iterator[Option]:
    """Those of a section, and last those of the sections in it."""
    hints = get_type_hints(kind, include_extras=True)
    defaults = kind()
    for name, hint in hints.items():
        path = f"{section}.{name}"
        if get_origin(hint) is None:
            yield from _options_of(path, hint)
            continue
        yield Option(
            path=path,
            option=path.removeprefix("node.").replace(".", "_"),
            type=hint,
            description=get_args(hint)[1].description,
            default=getattr(defaults, name),
        )


_OPTIONS = tuple(_options())
_BY_PATH = {option.path: option for option in _OPTIONS}
_BY_OPTION = {option.option: option for option in _OPTIONS}
_BY_VARIABLE = {option.variable: option for option in _OPTIONS}
_SECTIONS = tuple(dict.fromkeys(option.section for option in _OPTIONS))
_POLICY_FILE, _RULES = _BY_PATH["routing.policy_file"], _BY_PATH["routing.capability"]


def load_config(
    flags: Mapping[str, Any],
    env: Mapping[str, str] = os.environ,
    paths: Sequence[Path] | None = None,
    *,
    hostname: str | None = None,
    policies: Collection[str] = (),
) -> Loaded:
    """Merge and check everything.

    Args:
        flags: option names (`name`, `log_level`, see `options`) to values; None is "not given",
            and so is an empty list. `config` names the one file to read.
        env: the environment.
        paths: the files to read, the weakest first, missing ones skipped; `search_paths` if None.
        hostname: this machine's name; asked of the system if None.
        policies: names of the program's own, which may be named like any other.

    Raises:
        UsageError: the configuration is wrong; one message lists every fault. Nothing changed.
    """
    merge = _Merge()
    explicit = flags.get("config") or env.get("MESHD_CONFIG")
    if explicit:
        merge.file(Path(explicit).expanduser(), required=True)
    else:
        for path in search_paths(env) if paths is None else paths:
            merge.file(path, required=False)
    by_file = flags.get(_POLICY_FILE.option) or env.get(_POLICY_FILE.variable)
    merge.policy_file(str(by_file or merge.values[_POLICY_FILE.path]), env)
    merge.environment(env)
    merge.flags(flags)
    _derive(merge, env, socket.gethostname() if hostname is None else hostname)
    for key, fault in _check(merge.values, policies):
        merge.fault(key, fault)
    merge.check_tables()
    if merge.faults:
        raise UsageError(all_told(merge.faults), data={"faults": merge.faults})
    return merge.loaded()


class _Merge:
    """Values, origins, faults and warnings while the layers are laid over one another."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {option.path: option.default for option in _OPTIONS}
        self.origins = dict.fromkeys(self.values, "default")
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.files: list[Path] = []
        self.policies = ""
        self.tables: dict[str, tuple[tuple[dict[str, Any], ...], Path]] = {
            section: ((), Path()) for section in _TABLES
        }

    def fault(self, path: str, fault: str) -> None:
        """Note what is wrong with the value that holds now."""
        origin = self.origins[path]
        if origin == self.policies:  # there it is called otherwise
            path = path.replace("routing.", "" if path.startswith(_RULES.path) else "default.", 1)
        self.faults.append(f"{origin}: {path}: {fault}")

    def take(self, option: Option, value: Any, origin: str, *, lax: bool) -> None:
        """Convert one value and lay it over the earlier ones; a wrong one is a fault."""
        if option is _RULES:
            self._rules(read_tables(value), origin)
            return
        try:
            self._lay(option.path, converted(value, option.type, strict=not lax), origin)
        except ValueError as error:
            self.faults.append(f"{origin}: {option.path}: {error}")

    def _lay(self, path: str, value: Any, origin: str) -> None:
        self.values[path] = value
        self.origins[path] = origin

    def _rules(self, tables: Tables, origin: str) -> None:
        """Lay the tables of capabilities over the earlier ones, key by key."""
        for path, fault in tables.faults:
            self.faults.append(f"{origin}: {f'{_RULES.path}.{path}'.rstrip('.')}: {fault}")
        laid = dict(self.values[_RULES.path])
        for name, given in tables.values.items():
            laid[name] = joined(laid.get(name, rules.Overrides()), given)
            self.origins |= {f"{_RULES.path}.{name}.{key}": origin for key in given}
        self._lay(_RULES.path, laid, origin)

    def file(self, path: Path, *, required: bool) -> None:
        """Lay a TOML file over what there is."""
        try:
            tables = read_toml(path)
        except FileNotFoundError:
            if required:
                self.faults.append(f"{path}: there is no such file")
            return
        except OSError as error:
            self.faults.append(f"{path}: cannot be read: {error.strerror}")
            return
        except ValueError as error:
            self.faults.append(f"{path}{error}")
            return
        self.files.append(path)
        for section, table in tables.items():
            if section in _TABLES:
                self._many(path, section, table)
            elif section not in _SECTIONS:
                near = meant(section, (*_SECTIONS, *_TABLES))
                self.faults.append(f"{path}: {section}: unknown section{near}")
            else:
                self._section(path, section, table)

    def policy_file(self, path: str, env: Mapping[str, str]) -> None:
        """Lay the policy file over what the TOML files say, if there is one."""
        if not path:
            return
        self.policies = origin = expanded(path, env)
        found = read_policy_file(Path(origin))
        self.faults += [f"{origin}{fault}" for fault in found.faults]
        for key, value in found.default.items():
            self._lay(f"routing.{key}", value, origin)
        self._rules(Tables(found.tables.values), origin)
        self.files.append(Path(origin))

    def _section(self, path: Path, section: str, table: Any) -> None:
        if not isinstance(table, dict):
            self.faults.append(f"{path}: {section}: must be a table, written [{section}]")
            return
        for key, given in table.items():
            here = f"{section}.{key}"
            if here in _SECTIONS:
                self._section(path, here, given)
                continue
            value, option = given, _BY_PATH.get(here)
            if option is None:
                known = [o.path.rpartition(".")[2] for o in _OPTIONS if o.section == section]
                self.faults.append(f"{path}: {here}: unknown key{meant(key, known)}")
                continue
            if _is_path(option):
                value = _anchored(value, path.parent)
            elif option.path == "node.capability" and isinstance(value, list):
                value = [_anchored(v, path.parent) if _is_toml(v) else v for v in value]
            self.take(option, value, str(path), lax=False)

    def _many(self, path: Path, section: str, value: Any) -> None:
        if isinstance(value, list) and all(isinstance(table, dict) for table in value):
            self.tables[section] = tuple(value), path
        else:
            self.faults.append(f"{path}: {section}: must be tables, each written [[{section}]]")

    def check_tables(self) -> None:
        """Note what is wrong with the `[[capability]]` and `[[handler]]` tables."""
        for section, check in (
            ("capability", definitions_from_config), ("handler", handlers_from_config)
        ):  # fmt: skip
            tables, path = self.tables[section]
            try:
                check(tables)
            except UsageError as error:
                self.faults.append(f"{path}: {error.message}")

    def environment(self, env: Mapping[str, str]) -> None:
        """Lay `MESHD_*` variables over what there is. Empty ones count as not set."""
        for variable in sorted(v for v in env if v.startswith(ENV_PREFIX)):
            option = _BY_VARIABLE.get(variable)
            if option is None:
                if variable not in CLIENT_VARIABLES:
                    near = meant(variable, [*_BY_VARIABLE, *CLIENT_VARIABLES])
                    self.warnings.append(f"${variable}: unknown variable, ignored{near}")
            elif env[variable]:
                text = env[variable]
                try:
                    value = _from_text(option, text)
                except ValueError as error:
                    self.faults.append(f"${variable}: {option.path}: {error}")
                    continue
                self.take(option, value, f"${variable}", lax=True)

    def flags(self, flags: Mapping[str, Any]) -> None:
        """Lay flags over what there is."""
        for name, value in flags.items():
            if name == "config" or value is None or value in ((), []):
                continue
            option = _BY_OPTION.get(name)
            if option is None:
                self.faults.append(f"--{name}: unknown option{meant(name, list(_BY_OPTION))}")
                continue
            given = str(value) if isinstance(value, Path) else value
            if isinstance(option.default, dict) and not isinstance(value, Mapping):
                try:
                    given = _from_pairs(value)
                except ValueError as error:
                    self.faults.append(f"{option.flag}: {option.path}: {error}")
                    continue
            self.take(option, given, option.flag, lax=True)

    def loaded(self) -> Loaded:
        """The result, once there are no faults."""
        sections: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        for path, value in self.values.items():
            section, _, key = path.rpartition(".")
            sections[section][key] = value
        breaker = rules.BreakerSettings(**sections["routing.breaker"])
        config = Config(
            node=NodeConfig(**sections["node"]),
            log=LogConfig(**sections["log"]),
            routing=RoutingConfig(**sections["routing"], breaker=breaker),
            limits=LimitsConfig(**sections["limits"]),
            **{section: tables for section, (tables, _) in self.tables.items()},
        )
        return Loaded(config, self.origins, tuple(self.warnings), tuple(self.files))


def _from_text(option: Option, text: str) -> Any:
    """What an environment variable's text stands for: lists by commas, weights as `cpu=0.7`.

    Raises:
        ValueError: it has no such form.
    """
    if isinstance(option.default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(option.default, dict):
        return _from_pairs([part for part in text.split(",") if part.strip()])
    if isinstance(option.default, bool):
        words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
        return words.get(text.lower(), text)
    return text


def _from_pairs(parts: Sequence[str]) -> dict[str, str]:
    pairs = [part.partition("=") for part in parts]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError("write it as name=value,name=value")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _derive(merge: _Merge, env: Mapping[str, str], hostname: str) -> None:
    """Fill what depends on the machine and on other settings."""
    values = merge.values
    if not values["node.name"] and merge.origins["node.name"] == "default":
        values["node.name"] = _name_from_host(hostname)
    for option in _OPTIONS:
        if _is_path(option) and values[option.path]:
            values[option.path] = FilePath(expanded(values[option.path], env))
    mesh, name = values["node.mesh"], values["node.name"]
    if not values["node.state_dir"] and is_name(mesh) and is_name(name):
        values["node.state_dir"] = FilePath(str(default_state_dir(env, mesh, name)))


def _check(values: Mapping[str, Any], own: Collection[str]) -> Iterator[tuple[str, str]]:
    """Faults that no type shows, as (key path, sentence)."""
    for path in ("node.name", "node.mesh"):
        # A directory is named after each: `.` and `..` are names of other directories.
        if not is_name(values[path]) or not values[path].strip("."):
            rule = f"use 1 to {NAME_CHARS_MAX} letters, digits, dots, hyphens or underscores"
            yield path, f"{values[path][:80]!r} is not a valid name: {rule}"
    port = 0
    try:
        port = parse_bind(values["node.bind"]).port
    except UsageError as error:
        yield "node.bind", str(error)
    if values["node.advertise"]:
        try:
            parse_advertise(values["node.advertise"], port)
        except UsageError as error:
            yield "node.advertise", str(error)
    for text in values["node.join"]:
        try:
            parse_seed(text)
        except UsageError as error:
            yield "node.join", str(error)
    for field, fault in site_faults(Site(values["node.region"], values["node.labels"])):
        yield f"node.{field}", fault
    if not math.isfinite(values["node.drain_s"]):
        yield "node.drain_s", "must be a finite number of seconds"
    yield from ((f"routing.{path}", fault) for path, fault in _routing_faults(values, own))


def _routing_faults(values: Mapping[str, Any], own: Collection[str]) -> Iterator[tuple[str, str]]:
    of = {k.removeprefix("routing."): v for k, v in values.items() if k.startswith("routing.")}
    for key in filter(of.__contains__, KINDS):
        yield from ((key, fault) for fault in value_faults(key, of[key]))
    yield from (("policy", fault) for fault in policy_faults(of["policy"], own))
    tiers = rules.tier_faults(of["tiers"])
    yield from (("tiers", fault) for fault in tiers)
    yield from (("spend", fault) for fault in rules.spend_faults(of["spend"]))
    breaker = {k.removeprefix("breaker."): v for k, v in of.items() if k.startswith("breaker.")}
    circuits = list(rules.breaker_faults(breaker))
    yield from ((f"breaker.{key}", fault) for key, fault in circuits)
    default = rules.RoutingSettings(  # a wrong default is one fault, and not one of each table
        tiers={} if tiers else of["tiers"],
        breaker=rules.BreakerSettings(**({} if circuits else breaker)),
    )
    for path, fault in tables_faults(of["capability"], default, own):
        yield f"capability.{path}", fault


def _is_path(option: Option) -> bool:
    return get_args(option.type)[0] is FilePath


def _anchored(value: Any, directory: Path) -> Any:
    """A path in a file is relative to that file."""
    if not isinstance(value, str) or not value or value.startswith("~"):
        return value
    return str(directory / value)


def _is_toml(value: Any) -> bool:
    return isinstance(value, str) and value.endswith(".toml")


def _name_from_host(hostname: str) -> str:
    """The host's short name, made valid."""
    short = re.sub(r"[^A-Za-z0-9._-]", "-", hostname.partition(".")[0])[:NAME_CHARS_MAX].strip("-.")
    return short or "node"
