"""pool-sqlite."""
