"""Dialogue in seven languages: cleaned, checked, spelled out, timed, and written as the model reads it."""
