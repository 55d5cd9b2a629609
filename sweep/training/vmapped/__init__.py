"""Many trials of any module as one call: `torch.func.vmap` over their training steps."""
