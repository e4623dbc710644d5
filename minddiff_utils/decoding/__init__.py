"""From responses to the features that the generator is given: z, c and CLIP structure."""
