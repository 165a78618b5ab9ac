"""What trained the models of the examples."""
