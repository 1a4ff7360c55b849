"""Edits of photographs in this process, without Ray and without a run: the command `edit` and
`dhr_batch.edit`. Begin with `chain`.
"""

import os

# Threads of an operation wait for each other at its end. If other programs use the cores, threads
# that spin meanwhile take them from each other, and an edit takes minutes instead of one. OpenMP
# reads this once torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
