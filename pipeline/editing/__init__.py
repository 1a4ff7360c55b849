"""Edits of photographs in this process, without Ray and without a run: the command `edit` and
`dhr_batch.edit`. Begin with `chain`.
"""
