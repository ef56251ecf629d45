"""The policies that one node knows: those of this package, its program's own, and installed ones.

Further ones come by the entry point group `meshd.policies`: each is a cost function, as
`Mesh.add_policy` takes it.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping

from meshd.errors import UsageError
from meshd.model import check_name
from meshd.routing.installed import GROUP, RESERVED, installed
from meshd.routing.policies import POLICIES, Factors, Policy, Scene
from meshd.routing.signals import Estimate
from meshd.view import Peer

ADDED_MAX = 64

Cost = Callable[[Peer, Estimate], float]
"""What it costs to give a call to a peer, which would meet it as estimated; the lowest is best.

It is asked for a few peers of each call, in the node's main loop, so it must not block. Infinite is
as good as last.
"""


def custom_policy(name: str, cost: Cost) -> Policy:
    """A policy made of a cost function, in the same pipeline as all: it samples and probes.

    Its cost raises UsageError where the function fails or gives no number.
    """

    def told(peer: Peer, scene: Scene) -> float:
        try:
            found = float(cost(peer, scene.estimate(peer)))
        except Exception as error:
            raise UsageError(
                f"the policy {name} failed for {peer.name}: {error!r}"[:500],
                hint="its function takes a Peer and an Estimate and returns a number",
            ) from error
        return math.inf if math.isnan(found) else found

    def factors(peer: Peer, scene: Scene) -> Factors:
        estimate = scene.estimate(peer)
        return {"cost": told(peer, scene), "rif": estimate.rif, "eta_s": estimate.eta_s}

    return Policy(name, "a policy of one's own", told, factors, is_sampled=True, is_probed=True)


class Policies:
    """The policies of one node, by name."""

    def __init__(self) -> None:
        self._added: dict[str, Policy] = {}

    @property
    def added(self) -> tuple[str, ...]:
        """Names of those that are not this package's own, as far as they are loaded."""
        return tuple(self._added)

    def add(self, name: str, cost: Cost) -> Policy:
        """Make a cost function a policy; one of the same name that was added before gives way.

        Raises:
            UsageError: no valid name, or one of this package's own; no plain function; or they are
                too many. Nothing changed.
        """
        check_name(name, "policy")
        if name in RESERVED:
            raise UsageError(f"the policy {name} is meshd's own", hint="give yours another name")
        if not callable(cost) or inspect.iscoroutinefunction(cost):
            raise UsageError(
                f"the policy {name} is {cost!r:.80}, and no plain function",
                hint="a policy is a function of a Peer and an Estimate that returns a number",
            )
        if len(self._added) >= ADDED_MAX and name not in self._added:
            raise UsageError(f"a node takes at most {ADDED_MAX} policies of one's own")
        self._added[name] = made = custom_policy(name, cost)
        return made

    def named(self, name: str) -> Policy:
        """The policy of this name, loaded if it is installed.

        Raises:
            UsageError: there is none, or it cannot be loaded; the hint lists all.
        """
        found: Mapping[str, Policy] = {**POLICIES, **self._added} if self._added else POLICIES
        if name in found:
            return found[name]
        if name in installed():
            return self._load(name)
        names = dict.fromkeys((*found, *installed()))
        near = difflib.get_close_matches(name[:64], names, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"there is no policy {name[:64]!r}", hint=f"{meant}policies: {', '.join(names)}"
        )

    def _load(self, name: str) -> Policy:
        """The installed policy of this name, from now on among those that were added.

        Raises:
            UsageError: its package is broken, or names no function.
        """
        try:
            cost = installed()[name].load()
        except Exception as error:  # whatever its module does
            raise UsageError(
                f"the policy {name} is installed but cannot be loaded: {error!r}"[:500],
                hint=f"mend the package that names it in the entry point group {GROUP}",
            ) from error
        return self.add(name, cost)
