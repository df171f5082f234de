"""Facts about nodes that a plan is made from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node."""

    # As messages name it.
    name: str
    # Bytes it can give to weights and KV cache.
    memory_bytes: int
    # host:port of a worker; empty for the root.
    address: str = ""
