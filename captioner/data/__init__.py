"""Captioned images: annotation files, their formats, and batches."""
