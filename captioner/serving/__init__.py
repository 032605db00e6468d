"""The HTTP service: one model behind `captioner serve`."""
