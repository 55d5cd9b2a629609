"""What was asked for: settings from flags, environment, files and the study; the YAML reader."""
