"""I/O of a cluster: forming it and running steps on it."""
