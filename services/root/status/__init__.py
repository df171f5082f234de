"""The state of a cluster as clients, metrics and logs see it."""
