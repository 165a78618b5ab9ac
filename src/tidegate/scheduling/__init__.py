"""What to run next: slots, the batcher and learned latencies. Synchronous, without a clock."""
