"""The version of the package, apart from that of the wire protocol."""

__version__ = "0.1.0"
