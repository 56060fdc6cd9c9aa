"""Patches of activations: their geometry, their gathering, and their Gram matrix without gathering."""
