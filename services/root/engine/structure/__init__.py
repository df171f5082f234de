"""Structured output: constraints of an answer's text, enforced by llguidance."""
