"""What PyTorch's operations do to the places of elements."""

MOVES = {
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "view_as", "flatten", "unflatten"), ""),
    **dict.fromkeys(("permute", "transpose", "t", "mT", "numpy_T", "movedim", "swapaxes", "swapdims", "moveaxis"), ""),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to", "repeat", "tile", "repeat_interleave"), ""),
    **dict.fromkeys(("slice", "select", "narrow", "index", "index_select", "diagonal", "unfold"), ""),
    **dict.fromkeys(("unsqueeze", "unsqueeze_", "squeeze", "squeeze_"), ""),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"), ""),
    **dict.fromkeys(
        ("split", "split_with_sizes", "chunk", "tensor_split", "unbind", "unsafe_split", "unsafe_chunk"), ""
    ),
    **dict.fromkeys(("flip", "roll", "rot90", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), ""),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach", "lift_fresh", "to", "_to_copy", "type_as"), "same"),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "conj", "resolve_conj", "resolve_neg"), "same"),
}
"""Operations that move elements: they run on labels too. ``"same"``: every element stays where it is."""
MOVES |= dict.fromkeys(("view", "_unsafe_view", "_reshape_alias"), "reshape")

LIKE = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
"""Operations that make a new tensor of the shape of another."""

FRESH = {"new_ones", "new_zeros", "new_empty", "new_full", "new_empty_strided", "new_tensor"}
"""Operations that make a new tensor of any shape, with nothing of the other than its type."""

SINGLE_ELEMENTS = {
    *("hardswish", "hardsigmoid", "hardtanh", "relu6", "_prelu_kernel", "where", "masked_fill", "nan_to_num"),
    *("celu", "selu", "softshrink", "hardshrink", "threshold", "rrelu", "lerp", "addcmul", "addcdiv", "copy", "real"),
    *("angle", "polar", "complex", "imag", "fill", "zero"),
}
"""Operations on single elements that PyTorch does not tag as such (with or without a trailing underscore)."""

SUMS = {"add", "add_", "sub", "sub_", "rsub"}
"""Operations that make of what they join an interface."""

REDUCTIONS = {
    *("sum", "mean", "var", "std", "var_mean", "std_mean", "amax", "amin", "prod", "logsumexp", "nansum", "median"),
    *("linalg_vector_norm", "norm", "max", "min", "argmax", "argmin", "any", "all", "count_nonzero"),
}
"""Operations that make one element of all along some axes."""

SHAPES_KEPT = {"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp"}
"""Operations that work along one axis and leave its size."""

LAST_AXES = {
    **dict.fromkeys(("pad", "constant_pad_nd"), 0),
    **dict.fromkeys(("reflection_pad1d", "replication_pad1d"), 1),
    **dict.fromkeys(("reflection_pad2d", "replication_pad2d"), 2),
    **dict.fromkeys(("avg_pool1d", "adaptive_avg_pool1d", "max_pool1d", "max_pool1d_with_indices"), 1),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), 2),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices", "adaptive_max_pool2d"), 2),
    **dict.fromkeys(("upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d"), 1),
    **dict.fromkeys(
        ("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest_exact2d"), 2
    ),
}
"""Operations that work along the last axes, and on all others alone. 0: along as many as their padding has pairs."""
