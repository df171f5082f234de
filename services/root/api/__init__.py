"""The ways in to a root: frontend.py knows no transport, grpc/ is one."""
