"""The figures of the book, each a function that returns a matplotlib Figure; galleries' strips."""
