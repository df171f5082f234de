"""Tools and reasoning: from a model's chat template to its calls, and from its text to events."""
