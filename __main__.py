"""Run the command `dhr-batch` with `python -m dhr_batch`."""

from __future__ import annotations

from dhr_batch.cli import main

if __name__ == "__main__":
    main(prog_name="dhr-batch")
