"""What a node says of itself: the names of its metrics, statistics that can be summed, logs."""
