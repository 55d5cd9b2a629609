"""Training of MLPs in C, on CPUs."""
