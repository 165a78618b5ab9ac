"""What the controllers of nodes and of gateways are made of."""
