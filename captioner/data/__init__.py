"""Captioned pictures: annotation files, their formats, and batches made of them."""
