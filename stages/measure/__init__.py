"""Measuring: metrics of pictures, scores of faces, and comparison with ground truth."""
