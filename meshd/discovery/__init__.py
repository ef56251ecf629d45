"""Finding addresses of other nodes: seeds, a peers file, the cache on disk, mDNS. Hints only."""
