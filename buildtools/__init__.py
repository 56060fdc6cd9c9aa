"""How setup.py builds sylvinit._cuda.

Not part of the package: importing that needs torch, which an isolated build does not have. Whether
the building machine has a GPU decides nothing here.
"""
