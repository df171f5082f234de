"""Which sequences run in the next step, on which pages. Pure state."""
