"""A whole run as a value: how many nodes, which network, what happens when."""

from dataclasses import dataclass, field

from sim.faults import At
from sim.network import Shape


def number(value: float) -> str:
    """A number for a command line: short, and exactly the same when read again."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a run follows from.

    Attributes:
        scenario: the name under which the plan was made.
        nodes: how many hosts there are.
        seed: of everything random in the run.
        duration_s: how long faults may happen; then the run goes on until all agree.
        loss: as asked for, for the replay command; what holds is in `shape`.
        shape: the network's links.
        converged: how many hosts start as one old mesh; the others wait for a `Start`.
        meshes: how many meshes share the network.
        profile: the protocol's numbers, by name.
        whole: whether whole daemons run (level 2), or the gossip core alone (level 1).
        calls_per_s: how often each node is asked to delegate work; whole daemons only.
        faults: what happens.
    """

    scenario: str
    nodes: int
    seed: int
    duration_s: float
    loss: float = 0.0
    shape: Shape = field(default_factory=Shape)
    converged: int
    meshes: int = 1
    profile: str = "lan"
    whole: bool = False
    calls_per_s: float = 0.0
    faults: tuple[At, ...] = ()

    def command(self) -> str:
        """What replays this run."""
        return (
            f"meshd sim replay {self.scenario} --seed {self.seed} --nodes {self.nodes} "
            f"--duration {number(self.duration_s)}s --loss {number(self.loss)}"
        )

    def lines(self) -> tuple[str, ...]:
        """The plan for people, one line a fault, in the order of time."""
        first = f"{self.nodes} nodes ({self.converged} from the start), {self.shape}"
        timed = sorted(self.faults, key=lambda each: each.at_s)
        return (first, *(f"{each.at_s:9.3f} s  {each.fault}" for each in timed))
