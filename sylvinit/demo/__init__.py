"""A small experiment that shows what the initialisation does: ``sylvinit demo``."""
