"""The network: a vision encoder, and a text decoder with cross-attention to its features."""
