"""IP versions: which one this node uses for whom, and whom it cannot reach by any."""

import msgspec

from meshd.gossip.members import MemberTable
from meshd.model import Address, Member, NodeId

IPV4, IPV6 = 4, 6


class Families:
    """What follows from the addresses that this node tells of itself.

    It reaches those who tell an address of a version that it tells one of. Who has both versions
    uses IPv4; a node that has lost one uses the other from then on.
    """

    def __init__(self, me: Member) -> None:
        self._own = _versions(me)
        self.used = self._used()
        """The version to use for a member that has both."""

    def can_reach(self, member: Member) -> bool:
        """Whether this node speaks a version by which the member is reached.

        If not, others judge it: an own probe would say nothing about the member.
        """
        return _version(member.address) in self._own

    def follow(self, me: Member, table: MemberTable) -> list[NodeId]:
        """This node told new addresses of itself: use what it has now. Returns who is moved."""
        self._own = _versions(me)
        before, self.used = self.used, self._used()
        if self.used == before:
            return []
        turned = [m for m in table if m.other is not None and m.node != me.node]
        for member in turned:
            table.put(msgspec.structs.replace(member, address=member.other, other=member.address))
        return [member.node for member in turned]

    def _used(self) -> int:
        return IPV4 if IPV4 in self._own else IPV6


def _version(address: Address) -> int:
    return IPV6 if ":" in address.host else IPV4


def _versions(member: Member) -> tuple[int, ...]:
    """Of one address, or of two."""
    if member.other is None:
        return (_version(member.address),)
    return (IPV4, IPV6)
