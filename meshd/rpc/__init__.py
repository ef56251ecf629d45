"""JSON-RPC 2.0 between nodes, programs and tools: format, server, client, channel."""
