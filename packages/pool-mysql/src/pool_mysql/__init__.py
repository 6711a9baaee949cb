"""pool-mysql."""
