"""Several models of one root, of which one is in memory: loaded on demand, in turn."""
