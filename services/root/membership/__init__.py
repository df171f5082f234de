"""Which workers are in the cluster. Pure state: no clock, thread or transport."""
