"""Face parsers: class probabilities of every pixel, in the order of CelebAMask-HQ."""
