"""Configuration: one typed schema, from which files, environment and command line follow."""
