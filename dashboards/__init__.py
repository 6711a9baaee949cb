"""A Grafana dashboard and Prometheus alerts for pools, and how they are tried."""
