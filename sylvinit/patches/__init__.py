"""Patches of activations: their geometry, their gathering, and all of them at once."""
