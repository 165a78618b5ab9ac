"""The controller of a gateway: which machines there are, and how work is shared among them."""
