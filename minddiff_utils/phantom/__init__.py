"""A simulated brain that looks at rendered pictures: the known truth that calibrates the book."""
