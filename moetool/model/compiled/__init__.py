"""The reference's maths where torch is not quick enough for it, compiled by numba.

    dot         a row of a matrix as it is stored times a row of activations
    products    a few rows times a matrix: as fast as memory gives the weights
    row         one token through all layers in a single call

Importing this takes as long as importing numba. A function is compiled once on a machine, a product
in a second and a row in ten, and read from a cache beside its file (or from the user's) from then
on. numba looks for changes in a function's own file only: after one in dot.py, delete the cache.
"""

from moetool.model.compiled.dot import BLOCK
from moetool.model.compiled.products import takes, times
from moetool.model.compiled.row import Row, is_kept

__all__ = ["BLOCK", "Row", "is_kept", "takes", "times"]
