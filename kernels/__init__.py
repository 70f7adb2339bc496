"""Triton kernels of SlimSE, imported as ``slimse.kernels``. They come with a later version; none is here yet."""

if __name__ != "slimse.kernels":
    raise ImportError("this folder is the package slimse.kernels: install SlimSE and import slimse.kernels")
