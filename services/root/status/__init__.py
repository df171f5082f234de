"""What is told of a cluster: to clients and to metrics."""
