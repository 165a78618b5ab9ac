"""The load generator: closed and open loops of V2 calls, and what they measured."""
