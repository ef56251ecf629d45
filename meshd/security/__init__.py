"""Who a node is, and the files in which it keeps that."""
