"""Examples: the demo of `make demo`, and scripts of a few lines each against a running server."""
