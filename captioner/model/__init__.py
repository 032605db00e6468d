"""The network: a vision encoder, and a text decoder that attends to what it saw."""
