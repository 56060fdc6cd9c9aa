"""The Sylvester equation A X + X B = Q for batches of dense matrices.

solve, factors and lowrank are public; matrices (checks) -> operators, autograd (torch.library) ->
compute (takes a route) -> lapack | spectral | schur -> outcome (errors and warnings). semidefinite
is for layers. What counts as rounding, and refinement, stand in rounding.
"""
