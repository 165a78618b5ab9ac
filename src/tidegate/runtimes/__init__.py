"""What runs a model: one module a framework, one extra each, imported only in a replica."""
