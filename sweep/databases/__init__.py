"""SQLite and PostgreSQL as such: how to connect, check, and make a database whole."""
