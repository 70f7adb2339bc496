"""Slimmed operations: what a layer calls, and what is registered as ``torch.ops.slimse``.

Every op is defined by a plain-torch reference, which is also its CPU path (`blocks`, `convolution`,
`recurrent`), and takes two keyword arguments besides those of the reference:

- ``backend``: ``"auto"`` is a Triton kernel on a GPU, if there is one for the op, dtype and kind of width, else the
  reference. Its first use on a device compares the kernel with the reference; one that differs or does not run is left
  out, with a warning (`verdicts`). ``"reference"`` is plain torch; ``"triton"`` is the kernel, or an error that says
  why not.
- ``precision``: of float32 products in kernels, ``"ieee"``, ``"tf32"`` or ``"tf32x3"``.

`sinc_resample` and `running_level` are no registered ops: their references run where a gradient is wanted, and under
compilers and exporters.

Soft widths run on the references. Under autocast, blocks and convolutions run in its dtype, recurrent ops in that of
their weights.
"""

from .registration import BACKENDS, PRECISIONS, check_backend, register
from .registry import SPECS

encoder_block = register(SPECS["encoder_block"])
decoder_block = register(SPECS["decoder_block"])
slim_conv1d = register(SPECS["slim_conv1d"])
slim_conv_transpose1d = register(SPECS["slim_conv_transpose1d"])
slim_linear_glu = register(SPECS["slim_linear_glu"])
diagonal_gru = register(SPECS["diagonal_gru"])
slim_gru = register(SPECS["slim_gru"])
slim_lstm = register(SPECS["slim_lstm"])
sinc_resample = register(SPECS["sinc_resample"])
running_level = register(SPECS["running_level"])

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "check_backend",
    "decoder_block",
    "diagonal_gru",
    "encoder_block",
    "running_level",
    "sinc_resample",
    "slim_conv1d",
    "slim_conv_transpose1d",
    "slim_gru",
    "slim_linear_glu",
    "slim_lstm",
]
