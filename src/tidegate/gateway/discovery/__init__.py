"""Where the endpoints of a model come from: files, DNS or Kubernetes."""
