"""pool-postgres."""
