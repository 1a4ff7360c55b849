"""A small StyleGAN2 that is distilled from the 256 px generator, for tests of the architecture."""
