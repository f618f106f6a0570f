"""Helpers that the Knowledge-R1 notebooks share: one file a subject, see DESIGN in README.md."""
