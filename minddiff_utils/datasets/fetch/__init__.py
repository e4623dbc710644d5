"""Gets recordings from where they are published."""
