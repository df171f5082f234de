"""The root: its API, the engine and scheduler behind it, and the cluster it leads."""
