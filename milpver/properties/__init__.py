"""Formats of property files, one file each."""
