"""Adapter files: reading, parsing, writing. Knows methods, never models."""
