"""Examples: models to serve, what trained them, and a demonstration."""
