"""What a node does when it is asked: admission, execution and the life of a task."""
