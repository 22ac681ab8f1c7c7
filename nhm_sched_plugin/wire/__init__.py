"""The optimizer agent's messages: what may stand in them (`check`), and how they become our own types (`convert`)."""
