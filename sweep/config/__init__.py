"""Settings from flags, environment, files and the study; the YAML reader."""
