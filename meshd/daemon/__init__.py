"""The composition root: a whole node, its methods, its life cycle, its machine."""
