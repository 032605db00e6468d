"""Engines that run on several machines."""
