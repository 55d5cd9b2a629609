"""Data sets: catalog, downloads, tensors in memory."""
