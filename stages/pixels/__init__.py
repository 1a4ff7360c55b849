"""From files to pixels: formats, samples of any depth, colours. Begin with `stages/decode.py`."""
