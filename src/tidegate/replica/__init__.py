"""A replica: one process that serves one version of one model behind an edge."""
