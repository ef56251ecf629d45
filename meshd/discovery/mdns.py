"""Finding peers on the local network by mDNS: hints only, never liveness, never fatal."""

import asyncio
import errno
import random
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from meshd.clock import Clock, Instant, Seconds
from meshd.discovery.address import is_loopback, is_unspecified, is_usable
from meshd.discovery.base import (
    Found,
    Hint,
    Pause,
    SourceState,
    SourceStatus,
    cancel,
)
from meshd.discovery.interfaces import (
    Choice,
    Interface,
    choose,
    networks_of,
    read_interfaces,
)
from meshd.discovery.mdns_records import (
    SERVICE_TYPE,
    Announcement,
    host_name,
    instance_name,
    mesh_hash,
    node_of,
    parse_properties,
    to_properties,
)
from meshd.discovery.retry import RetrySchedule, TokenBucket
from meshd.model import Address, MeshId, NodeId
from meshd.telemetry.log import LimitedLog, event, get_logger

if TYPE_CHECKING:
    from zeroconf import IPVersion
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

MDNS_GROUP = "224.0.0.251"
MDNS_PORT = 5353
POLL_S = 2.0
SETTLE_S = 1.0
"""A change of interfaces counts once two looks this far apart agree: Wi-Fi flaps."""

CANDIDATES_MAX = 1024
ADDRESSES_MAX = 8
REQUESTS_MAX = 32
REQUEST_TIMEOUT_MS = 3000
RECORDS_BURST = 512
RECORDS_PER_S = 50.0
HINTS_PER_TICK = 32
TICK_S = 1.0
REPEAT_FIRST_S = 2.0
REPEAT_LIMIT_S = 60.0
"""Who is announced here and now is worth more tries than a memory."""

STOP_TIMEOUT_S = 3.0
TEXT_BYTES_READ_MAX = 4096
"""A longer TXT record is not even taken apart."""

logger = get_logger(__name__)


class MdnsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to announce, and where.

    `bound` is where the node's sockets really are; `advertise` overrides the addresses that
    others are told (all with the first one's port); `interfaces` are names, or empty to choose;
    `poll_s` is how often the machine's interfaces are looked at.
    """

    node: NodeId
    mesh: MeshId
    name: str
    bound: Address
    protocol: int = 1
    advertise: tuple[Address, ...] = ()
    interfaces: tuple[str, ...] = ()
    poll_s: Seconds = POLL_S
    settle_s: Seconds = SETTLE_S


class MdnsCounters(msgspec.Struct):
    """What came in, and why it was not believed."""

    hints: int = 0
    foreign_mesh: int = 0
    malformed: int = 0
    no_address: int = 0
    flooded: int = 0
    unanswered: int = 0
    evicted: int = 0


class MdnsSource:
    """Announces this node and hints at announced nodes of the same mesh that are not alive.

    `is_alive` says whether a node is a living member, `is_alone` whether we know no other, `share`
    which part of those that are due to try (the others on this network hear the same); all must be
    cheap. A record's removal is ignored: whether a node lives is the failure detector's
    word, and a goodbye is easily forged.
    """

    def __init__(
        self,
        settings: MdnsSettings,
        *,
        clock: Clock,
        is_alone: Callable[[], bool],
        is_alive: Callable[[NodeId], bool],
        rng: random.Random,
        read: Callable[[], tuple[Interface, ...]] = read_interfaces,
        share: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.counters = MdnsCounters()
        self._settings = settings
        self._mesh = mesh_hash(settings.mesh)
        self._versions = (4, 6) if ":" in settings.bound.host else (4,)
        self._clock = clock
        self._is_alone = is_alone
        self._is_alive = is_alive
        self._read = read
        self._share = share
        self._choice = Choice()
        self._all: tuple[Interface, ...] = ()
        self._fault = ""
        self._link: _Link | None = None
        self._applied: tuple[list[str], list[str]] = ([], [])
        self._candidates: dict[NodeId, tuple[Address, ...]] = {}
        self._schedule: RetrySchedule[NodeId] = RetrySchedule(
            rng, first_s=REPEAT_FIRST_S, limit_s=REPEAT_LIMIT_S
        )
        self._rng = rng
        self._bucket = TokenBucket(per_s=RECORDS_PER_S, burst=RECORDS_BURST)
        self._limited = LimitedLog(logger, now=clock.now)
        self._requests: dict[str, asyncio.Task[None]] = {}
        self._postponed: dict[str, None] = {}
        self._found: Found | None = None
        self._pause = Pause()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, found: Found) -> None:
        """Announce and browse; whatever the network refuses is in `status` and tried again."""
        if self._tasks:
            return
        self._found = found
        await self._look(settle=False)
        self._tasks = [
            asyncio.create_task(self._watch(), name="discovery-mdns-interfaces"),
            asyncio.create_task(self._repeat(), name="discovery-mdns-hints"),
        ]

    async def stop(self) -> None:
        """Say goodbye and close. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            await cancel(task)
        self._found = None
        await self._close()

    def retry(self) -> None:
        """Try all who are announced again now, and look at the interfaces."""
        self._schedule.hurry(self._clock.now())
        self._pause.wake()

    def status(self) -> SourceStatus:
        """Failed means that mDNS finds nobody now, limited that it sees this machine alone."""
        if self._link is None:
            reason = self._fault or "; ".join(self._choice.problems) or "not started"
            detail = f"{reason}; going on without mDNS: use --join"
            return SourceStatus("mdns", SourceState.FAILED, detail)
        parts = [f"on {self._choice.names}", f"{len(self._candidates)} announced"]
        if self._choice.makeshift:
            only = "finds nodes of this machine alone: use --join for others"
            detail = "; ".join([*parts, *self._choice.problems, only])
            return SourceStatus("mdns", SourceState.LIMITED, detail)
        return SourceStatus("mdns", SourceState.OK, "; ".join([*parts, *self._choice.problems]))

    # Interfaces

    async def _watch(self) -> None:
        while True:
            await self._pause.wait(self._settings.poll_s)
            await self._look(settle=True)

    async def _look(self, *, settle: bool) -> None:
        """Bring announcement and browsing in line with the machine's interfaces."""
        read = await self._read_choice()
        if read is None or (self._link is not None and read == (self._all, self._choice)):
            return
        if settle and read != (self._all, self._choice):
            await self._pause.wait(self._settings.settle_s)
            if await self._read_choice() != read:
                return  # still moving: the next look decides
        self._all, self._choice = read
        try:
            await self._apply()
        except Exception as error:  # noqa: BLE001  # whatever zeroconf raises must not end the node
            await self._close()
            self._failed(_sentence(error))

    async def _read_choice(self) -> tuple[tuple[Interface, ...], Choice] | None:
        try:
            interfaces = await asyncio.to_thread(self._read)
        except (OSError, RuntimeError) as error:
            self._failed(f"cannot list the network interfaces: {error}")
            return None
        return interfaces, choose(
            interfaces,
            self._settings.interfaces,
            loopback_only=is_loopback(self._settings.bound.host),
            versions=self._versions,
        )

    async def _apply(self) -> None:
        senders = [a for i in self._choice.interfaces for a in i.multicasters(self._versions)]
        if senders:
            senders = await asyncio.to_thread(multicast_addresses, senders)
        if not senders:
            await self._close()
            problems = "; ".join(self._choice.problems)
            self._failed(problems or f"no multicast on {self._choice.names}")
            return
        addresses = self._own_addresses()
        if self._link is None:
            self._link = await _Link.open(senders, self._info(addresses), self._on_record)
            event(logger, "info", "mdns_started", interfaces=self._choice.names)
        elif self._applied != (senders, addresses):
            await self._link.update(senders, self._info(addresses))
            event(logger, "info", "mdns_moved", interfaces=self._choice.names, addresses=addresses)
        self._applied = (senders, addresses)
        self._fault = ""

    def _own_addresses(self) -> list[str]:
        """Under which addresses others can reach us."""
        bound, advertise = self._settings.bound, self._settings.advertise
        if advertise:
            return [address.host for address in advertise if address.port == advertise[0].port]
        if not is_unspecified(bound.host):
            return [bound.host]
        return [a for v in self._versions for i in self._choice.interfaces for a in i.addresses(v)]

    def _info(self, addresses: list[str]) -> "AsyncServiceInfo":
        from zeroconf.asyncio import AsyncServiceInfo

        settings = self._settings
        port = (settings.advertise or (settings.bound,))[0].port
        announcement = Announcement(
            settings.node, self._mesh, settings.protocol, port, settings.name
        )
        return AsyncServiceInfo(
            SERVICE_TYPE,
            instance_name(settings.node),
            port=port,
            properties=to_properties(announcement),
            server=host_name(settings.node),
            parsed_addresses=addresses,
        )

    def _failed(self, fault: str) -> None:
        if self._fault != fault:
            self._fault = fault
            event(logger, "warning", "mdns_failed", reason=fault, effect="going on without mDNS")

    async def _close(self) -> None:
        for task in list(self._requests.values()):
            await cancel(task)
        self._requests.clear()
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    # Records

    def _on_record(self, link: "_Link", instance: str) -> None:
        """An instance appeared or changed. Runs in the loop, for anything that anybody sends."""
        node = node_of(instance)
        if node is None:
            self.counters.malformed += 1
            return
        if node == self._settings.node or instance in self._requests:
            return
        if not self._bucket.take(self._clock.now()):
            self._postpone(instance)
            return
        info = link.cached(instance)
        if info.text and not self._is_ours(info, node):
            return
        # Large records come in several datagrams; whose TXT record is not here yet is not ours yet.
        if info.text and info.port and info.parsed_addresses():
            self._believe(info, node)
        elif len(self._requests) < REQUESTS_MAX:
            self._requests[instance] = asyncio.create_task(
                self._request(link, instance, node), name="discovery-mdns-request"
            )
        else:
            self._postpone(instance)

    def _postpone(self, instance: str) -> None:
        """Too much at once: this one waits for a calmer second, or is lost where too many wait."""
        self.counters.flooded += 1
        self._limited.event("warning", "mdns_flood", postponed=self.counters.flooded)
        if len(self._postponed) < CANDIDATES_MAX:
            self._postponed[instance] = None

    async def _request(self, link: "_Link", instance: str, node: NodeId) -> None:
        """Ask for the records that the cache lacks."""
        try:
            info = await link.ask(instance)
            if info is None:
                self.counters.unanswered += 1
            elif self._is_ours(info, node):
                self._believe(info, node)
        except Exception as error:  # noqa: BLE001  # a hostile record must not end the browsing
            self._limited.event("warning", "mdns_record_failed", reason=_sentence(error))
        finally:
            self._requests.pop(instance, None)

    def _is_ours(self, info: "AsyncServiceInfo", node: NodeId) -> bool:
        """Whether the TXT record is whole, names this node, and is of our mesh."""
        text = info.text or b""
        if len(text) > TEXT_BYTES_READ_MAX:
            self.counters.malformed += 1
            return False
        said = parse_properties(info.properties, len(text))
        if said is None or said.node != node:
            self.counters.malformed += 1
            return False
        if said.mesh != self._mesh:
            self.counters.foreign_mesh += 1
            return False
        return True

    def _believe(self, info: "AsyncServiceInfo", node: NodeId) -> None:
        """Keep the usable addresses of a node of our mesh, and hint at it unless it is alive."""
        port = info.port or 0
        networks = networks_of(self._all)
        own = self._own()
        loopback = self._choice.loopback
        addresses = tuple(
            address
            for host in info.parsed_addresses()
            if is_usable(
                address := Address(host, port), own=own, networks=networks, loopback=loopback
            )
        )[:ADDRESSES_MAX]
        if not addresses:
            self.counters.no_address += 1
            return
        changed = self._candidates.get(node) != addresses
        self._candidates.pop(node, None)
        self._candidates[node] = addresses
        now = self._clock.now()
        if len(self._candidates) > CANDIDATES_MAX:
            oldest = next(iter(self._candidates))
            del self._candidates[oldest]
            self._schedule.remove(oldest)
            self.counters.evicted += 1
        self._schedule.add(node, now)
        if changed and not self._is_alive(node):
            share = self._share()
            if share >= 1.0 or self._rng.random() < share:
                self._hint(node)

    def _own(self) -> frozenset[Address]:
        """All places where we ourselves answer."""
        port = self._settings.bound.port
        own = {self._settings.bound}
        if is_unspecified(self._settings.bound.host):
            own |= {
                Address(host, port) for i in self._all for v in (4, 6) for host in i.addresses(v)
            }
        return frozenset(own.union(self._settings.advertise))

    def _hint(self, node: NodeId) -> None:
        for address in self._candidates.get(node, ()):
            if self._found is not None:
                self.counters.hints += 1
                self._found(Hint(address, node, "mdns"))

    async def _repeat(self) -> None:
        """Hint again at announced nodes that are not alive, so that a partition heals."""
        while True:
            await asyncio.sleep(TICK_S)
            now: Instant = self._clock.now()
            for node in self._schedule.due(
                now, alone=self._is_alone(), is_alive=self._is_alive, limit=HINTS_PER_TICK,
                share=self._share(),
            ):  # fmt: skip
                self._hint(node)
            self._catch_up()

    def _catch_up(self) -> None:
        link = self._link
        waiting = list(self._postponed)[:REQUESTS_MAX]
        for instance in waiting:
            del self._postponed[instance]
        for instance in waiting:
            if link is not None:
                self._on_record(link, instance)


class _Link:
    """One zeroconf instance with our announcement and our browser."""

    def __init__(self, zeroconf: "AsyncZeroconf") -> None:
        self._zeroconf = zeroconf
        self._browser: AsyncServiceBrowser | None = None
        self._broadcast: asyncio.Future[None] | None = None

    @classmethod
    async def open(
        cls,
        senders: list[str],
        info: "AsyncServiceInfo",
        on_record: Callable[["_Link", str], None],
    ) -> "_Link":
        """Announce at once (ids are unique: no probing, which would hide us for a second).

        Raises:
            OSError: the sockets cannot be opened.
        """
        from zeroconf import ServiceStateChange
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        # Never InterfaceChoice.Default: it fails where there is no default route.
        link = cls(AsyncZeroconf(interfaces=senders, ip_version=_version_of(senders)))

        def on_change(state_change: ServiceStateChange, name: str, **_: Any) -> None:
            if state_change is not ServiceStateChange.Removed:
                on_record(link, name)

        core = link._zeroconf.zeroconf
        try:
            await core.async_wait_for_start()
            link._keep(
                await link._zeroconf.async_register_service(info, cooperating_responders=True)
            )
            link._browser = AsyncServiceBrowser(core, SERVICE_TYPE, handlers=[on_change])
        except BaseException:
            await link.close()
            raise
        return link

    def _keep(self, broadcast: Any) -> None:
        """Own the repeated announcements, which go on for half a second, without waiting."""
        self._broadcast = asyncio.ensure_future(broadcast)
        self._broadcast.add_done_callback(lambda f: f.cancelled() or f.exception())

    async def update(self, senders: list[str], info: "AsyncServiceInfo") -> None:
        """Move to other interfaces and announce other addresses."""
        await self._zeroconf.async_update_interfaces(senders, ip_version=_version_of(senders))
        self._keep(await self._zeroconf.async_update_service(info))

    def cached(self, instance: str) -> "AsyncServiceInfo":
        """What zeroconf knows of an instance already."""
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(SERVICE_TYPE, instance)
        info.load_from_cache(self._zeroconf.zeroconf)
        return info

    async def ask(self, instance: str) -> "AsyncServiceInfo | None":
        """Ask the network for an instance's records; None if nobody answers in time."""
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(SERVICE_TYPE, instance)
        complete = await info.async_request(self._zeroconf.zeroconf, REQUEST_TIMEOUT_MS)
        return info if complete else None

    async def close(self) -> None:
        """Say goodbye (as far as the network lets us) and close the sockets."""
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                if self._broadcast is not None:
                    self._broadcast.cancel()
                if self._browser is not None:
                    await self._browser.async_cancel()
                await self._zeroconf.async_close()
        except Exception as error:  # noqa: BLE001  # the network may be gone, and with it the goodbye
            event(logger, "debug", "mdns_close_failed", reason=_sentence(error))


def _version_of(senders: list[str]) -> "IPVersion":
    from zeroconf import IPVersion

    of_version_6 = [":" in address for address in senders]
    if not any(of_version_6):
        return IPVersion.V4Only
    return IPVersion.V6Only if all(of_version_6) else IPVersion.All


def multicast_addresses(addresses: list[str]) -> list[str]:
    """Those of our addresses on whose interface the mDNS group can be joined.

    Raises:
        OSError: another program holds port 5353 for itself alone. Tried here with a socket of our
            own, because zeroconf leaves its socket open when that fails.
    """
    return [address for address in addresses if _can_join(address)]


def _can_join(address: str) -> bool:
    is_v6 = ":" in address
    with socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(("", MDNS_PORT))
        if is_v6:
            return True  # IPv6 has no interface without multicast but tunnels, which lack the flag
        group = socket.inet_aton(MDNS_GROUP) + socket.inet_aton(address)
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        except OSError:
            return False
    return True


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"another program uses UDP port {MDNS_PORT} for itself alone"
    if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM}:
        return f"not permitted to use UDP port {MDNS_PORT}"
    return f"{type(error).__name__}: {error}"
