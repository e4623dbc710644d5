"""From notebooks to HTML: running, building, galleries."""
