"""Triton kernels of SlimSE, imported as ``slimse.kernels``.

One module per op, forward and backward, with a width per row; `slimse.ops` calls them on a GPU, or where
``backend="triton"`` asks for them. No kernel has run on a GPU yet: they are checked in Triton's interpreter.
"""

if __name__ != "slimse.kernels":
    raise ImportError("this folder is the package slimse.kernels: install SlimSE and import slimse.kernels")
