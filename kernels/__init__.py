"""Triton kernels of SlimSE, imported as ``slimse.kernels``.

`encoder_block` and `decoder_block` run with a width per row, forward and backward. The model does not call them yet: it
runs on the plain-torch twins in `slimse.ops`, and no kernel has run on a GPU.
"""

if __name__ != "slimse.kernels":
    raise ImportError("this folder is the package slimse.kernels: install SlimSE and import slimse.kernels")
