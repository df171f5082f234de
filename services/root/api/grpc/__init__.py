"""hearth.v1.RootService on grpc.aio."""
