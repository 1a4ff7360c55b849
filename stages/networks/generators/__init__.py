"""Generators behind one interface: named weights, codes in W and W+, taps on features."""
