"""Which patches each word looked at, and pictures of it."""
