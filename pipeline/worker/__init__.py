"""The processing of shards in one process, independent of Ray: reading, the stages in order, and
writing. Begin with `worker`; `loading` also serves edits without a run.
"""
