"""Generative judges: templates that render and parse, ways to ask them, rankings from verdicts; no scorer."""
