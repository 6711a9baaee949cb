"""Our pool beside the floors and its peers: `python -m benchmarks --help`."""
