"""Many MLPs in tensors with a trial axis, for GPUs and trials unsupported by the kernel."""
