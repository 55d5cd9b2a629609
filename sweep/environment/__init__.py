"""The process that sweep runs in: its signals, environment variables, streams and versions."""
