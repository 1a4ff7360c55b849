"""Detection, landmarks, recognition and judges of faces."""
