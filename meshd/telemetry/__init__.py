"""What a node says about itself: log lines and metrics."""
