"""Where the endpoints of a model come from: fixed, from files, DNS or Kubernetes."""
