"""A node: an edge, its controller and the replicas of a model repository on one machine."""
