"""Plans: which node holds which part of a model. Pure: no clock, thread or transport."""
