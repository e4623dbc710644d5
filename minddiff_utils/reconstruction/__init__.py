"""From decoded features to a picture: stage 1, stage 2, and their losses."""
