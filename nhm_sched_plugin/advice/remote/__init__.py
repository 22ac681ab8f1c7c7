"""Advice over the wire: the agent's tables mirrored in this process, and calls for what the mirror cannot answer."""
