"""A pure peer-to-peer gossip daemon. Public names load on first use, to keep start-up cheap."""

from typing import TYPE_CHECKING, Any

from meshd.version import __version__

if TYPE_CHECKING:
    from meshd.errors import MeshError, PeerError, UsageError
    from meshd.mesh import Mesh, capability
    from meshd.sink import progress
    from meshd.units import charge

__all__ = [
    "Mesh", "MeshError", "PeerError", "UsageError", "__version__", "capability", "charge",
    "progress",
]  # fmt: skip

_HOMES = {
    "Mesh": "meshd.mesh",
    "capability": "meshd.mesh",
    "charge": "meshd.units",
    "progress": "meshd.sink",
    "MeshError": "meshd.errors",
    "PeerError": "meshd.errors",
    "UsageError": "meshd.errors",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'meshd' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
