"""Who holds what of a model. Pure: no clock, thread or transport."""
