"""Membership: the workers in the cluster. Pure state: no clock, thread or transport."""
