"""Facts about nodes from which a plan is made."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """One node."""

    # Its name in messages.
    name: str
    # Bytes available for weights and KV cache.
    memory_bytes: int
    # host:port of a worker; empty for the root.
    address: str = ""
