"""A small experiment that shows what the initialization does: ``sylvinit demo``."""
