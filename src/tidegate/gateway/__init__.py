"""The controller of a gateway: one address for many machines."""
