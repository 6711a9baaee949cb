"""Real servers for the tests: how they are built, started, disturbed and removed. No part of any distribution."""
