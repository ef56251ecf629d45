"""Work that is passed on again and again must not go in circles."""

from meshd.errors import Code, PeerError
from meshd.model import NodeId
from meshd.routing.request import DelegateRequest


def check_hops(request: DelegateRequest, me: NodeId, hops_max: int) -> None:
    """Refuse work that came back to this node, or was passed on `hops_max` times or more.

    Raises:
        PeerError: with code CYCLE; nothing ran.
    """
    hops, here = request.hops, me.hex()
    elsewhere = len(hops)
    while elsewhere and hops[elsewhere - 1] == here:
        elsewhere -= 1  # work that runs here may go on here: no circle, but it counts
    if len(hops) >= hops_max or here in hops[:elsewhere]:
        raise PeerError(
            f"{request.capability!r} was passed on {len(hops)} times and came back or never"
            " settled",
            hint=f"a capability may call itself through others; hops: {' > '.join(hops)}",
            code=Code.CYCLE,
        )
