"""The frozen LLM: load it, render messages, locate its parts, read its states, sample from it."""
