"""The root: its gRPC face, the engine and scheduler behind it, and the cluster it leads."""
