"""What a node counts, as Prometheus text at `/metrics`."""

from itertools import product
from typing import TYPE_CHECKING

from meshd.model import MemberState
from meshd.telemetry.metrics import Registry, Values
from meshd.version import __version__

if TYPE_CHECKING:
    from meshd.daemon.node import Node


class NodeMetrics:
    """Reads the node's counters when somebody asks."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._registry = registry = Registry()
        registry.read("meshd_build_info", "Version of meshd.", self._build, ("version",))
        registry.read("meshd_uptime_seconds", "Seconds since start.", self._uptime)
        registry.read("meshd_members", "Members by state.", self._members, ("state",))
        registry.read("meshd_gossip_events_total", "Gossip counters.", self._gossip, ("event",))
        registry.read("meshd_gossip_pending_entries", "What waits.", self._pending, ("kind",))
        registry.read("meshd_health_score", "Lifeguard's local health: 0 is well.", self._health)
        registry.read("meshd_loop_lag_seconds", "How late the main loop runs.", self._lag)
        registry.read("meshd_ended_tasks_total", "Ended tasks.", self._tasks, ("outcome",))
        registry.read("meshd_running_tasks", "Tasks that run or wait.", self._running, ("state",))
        registry.read("meshd_rpc_events_total", "Refused or faulty calls.", self._rpc, ("event",))
        registry.read("meshd_routing_events_total", "Calls, probes.", self._routing, ("event",))
        opened, kept = "Circuits that opened.", "Circuits that are not closed."
        registry.read("meshd_circuits_opened_total", opened, self._opened, ("scope",))
        registry.read("meshd_circuits", kept, self._circuits, ("scope", "state"))
        registry.read("meshd_cpu_ratio", "CPU use, 0..1.", self._cpu)
        registry.read("meshd_memory_ratio", "Memory use, 0..1.", self._memory)

    def expose(self) -> str:
        """The text."""
        return self._registry.expose()

    def _build(self) -> Values:
        return {(__version__,): 1}

    def _uptime(self) -> float:
        return self._node.clock.now() - self._node.started_at

    def _members(self) -> Values:
        counts: dict[tuple[str, ...], float] = {(s.name.lower(),): 0.0 for s in MemberState}
        for peer in self._node.view().peers:
            counts[peer.state.name.lower(),] += 1
        return counts

    def _gossip(self) -> Values:
        counters = self._node.gossip.counters()
        return {
            (name,): float(value)
            for name, value in counters.items()
            if name != "health_score" and not name.startswith("pending_")
        }

    def _pending(self) -> Values:
        counters = self._node.gossip.counters()
        return {
            (name.removeprefix("pending_"),): float(value)
            for name, value in counters.items()
            if name.startswith("pending_")
        }

    def _health(self) -> float:
        return float(self._node.gossip.counters()["health_score"])

    def _lag(self) -> float:
        return self._node.own_load.lag_s

    def _tasks(self) -> Values:
        counters = self._node.worker.counters
        return {
            ("done",): float(counters.done),
            ("failed",): float(counters.failed),
            ("refused",): float(counters.refused),
            ("cancelled",): float(counters.cancelled),
            ("expired",): float(counters.expired),
        }

    def _running(self) -> Values:
        load = self._node.worker.load()
        return {("running",): float(load.in_flight), ("waiting",): float(load.queue)}

    def _rpc(self) -> Values:
        return {(name,): float(value) for name, value in self._node.server.counters.items()}

    def _routing(self) -> Values:
        return {(name,): float(value) for name, value in self._node.dispatcher.counters.items()}

    def _opened(self) -> Values:
        breakers = self._node.dispatcher.breakers
        return {
            ("node",): float(breakers.opened_at_nodes),
            ("capability",): float(breakers.opened_whole),
        }

    def _circuits(self) -> Values:
        node = self._node
        kinds = product(("node", "capability"), ("open", "half_open"))
        counts: dict[tuple[str, ...], float] = dict.fromkeys(kinds, 0.0)
        for circuit in node.dispatcher.breakers.shown(node.view(), node.clock.now()):
            scope = "capability" if circuit.node is None else "node"
            counts[scope, circuit.state.value] += 1
        return counts

    def _cpu(self) -> float:
        return self._node.own_load.machine.cpu_fraction

    def _memory(self) -> float:
        return self._node.own_load.machine.mem_fraction
