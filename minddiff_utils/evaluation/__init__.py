"""What the pictures are worth: metrics, controls, statistics, tables."""
