"""Networks of published inversion methods that map a photograph to codes, weights or masks."""
