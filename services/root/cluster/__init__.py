"""Forming a cluster and running steps on it: the I/O."""
