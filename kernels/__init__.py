"""Triton kernels of SlimSE, imported as ``slimse.kernels``.

One module per op, each with a forward and a backward launcher: `encoder_block`, `decoder_block`, `slim_conv1d`,
`slim_conv_transpose1d`, `slim_linear_glu`, `slim_gru`, `slim_lstm` and `diagonal_gru`; `sinc_resample` and
`running_level` go forward alone. They stand on three products (`window_gemm`, `overlap_add`, and the gradient of a
weight in `prefix_gemm`), on `recurrent_loop`, in which GRU and LSTM are one, and on `launching`. What they compute is
tested in Triton's interpreter, and that they compile ahead of time; none has run on a GPU.
"""

if __name__ != "slimse.kernels":
    raise ImportError("this folder is the package slimse.kernels: install SlimSE and import slimse.kernels")
