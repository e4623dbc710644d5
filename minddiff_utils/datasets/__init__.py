"""Recordings, each read into the same `Subject` record."""
