"""Streams for other tools: each module is for one, which is an extra."""
