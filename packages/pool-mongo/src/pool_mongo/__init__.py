"""pool-mongo."""
