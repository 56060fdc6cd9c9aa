"""Initialisers that experiments compare sylvinit against."""
