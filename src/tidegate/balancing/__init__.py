"""Who gets how much: effective weights, latency, ejection. Synchronous, without a clock."""
