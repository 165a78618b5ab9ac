"""The command line: arguments in, one call, a readable answer out."""
