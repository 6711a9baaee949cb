"""pool-redis."""
