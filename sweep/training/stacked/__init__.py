"""Many MLPs in tensors of one more axis, for a GPU and for what the compiled kernel lacks."""
