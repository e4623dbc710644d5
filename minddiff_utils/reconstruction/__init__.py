"""From decoded features to a picture: stage 1, stage 2, and their losses.

`stage1` paints a first picture; `stage2` corrects its structure, by `guided_sampling` or as the
paper does by `algorithm1`. `inputs` turns decoded features into what both are given, `losses` says
how far a picture is from them, and `results` writes and reads the files.
"""
