"""Where samples come from: data sets by name, downloads, tensors in memory."""
