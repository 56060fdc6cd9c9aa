"""The Sylvester equation A X + X B = Q for batches of dense matrices.

solve, factors and lowrank are public; arguments (shapes) -> operators (torch.library, autograd) ->
routes (the dispatch table) -> lapack | spectral | schur -> outcome (errors and warnings).
"""
