"""The resources that the stages of a worker share (`Context`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dhr_batch.stages import registry
from dhr_batch.stages.device import Precision
from dhr_batch.stages.record import Record

# Told how far a stage is with a batch: its family, the number of steps done, and of all steps.
Told = Callable[[str, int, int], None]
# Where a context keeps the refiner among its networks.
_REFINER = ("refine", "")


@dataclass
class Context:
    """The resources that stages share: device, seed, model files and loaded networks.

    Attributes:
        device: Device of torch, such as `cpu` or `cuda`.
        generator: Name of the generator, or a file written by `dhr-batch models convert`.
        models: Function from the name of a model to the path of its verified file or folder.
        seed: Seed of all random numbers.
        aligned: Whether the dataset is already FFHQ-aligned. Then no face is searched for.
        refine: Settings of the stage `refine` of the run, with `name`.
        edit: Settings of the stage `edit` of the run that pictures are rendered again with.
        precision: Precision of the run (see `device`). The flags of the process are not set by it.
        progress: Called by stages after each step of a batch, with the family of the stage, the
            number of steps that are done and the number of all steps. Stages without steps, such
            as a single pass of a network, do not call it. It must return at once: on a GPU, a wait
            would hold up the device.
        stored: Returns a record with the refinement as the tables of the run will store it, which
            pictures are rendered from. By default, it is exact.
    """

    device: str
    generator: str
    models: Callable[[str], Path]
    seed: int = 0
    aligned: bool = False
    refine: Mapping[str, Any] = field(default_factory=lambda: {"name": "none"})
    edit: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    progress: Told = lambda family, step, steps: None
    stored: Callable[[Record], Record] = lambda record: record
    _networks: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def network(self, family: str, name: str) -> Any:
        """Return the network `name` of `family`, loaded once and shared by all stages of a worker.

        Raises:
            UnknownName: The family has no such member.
        """
        key = (family, name)
        if key not in self._networks:
            self._networks[key] = registry.lookup(family, name)(self)
        return self._networks[key]

    def new_refiner(self) -> Any:
        """Return the refiner of the run without its networks.

        Stored settings that the refiner no longer has are left out, as they belong to the
        optimisation.

        Raises:
            UnknownName: There is no such refiner.
        """
        member = registry.lookup("refine", self.refine["name"])
        known = {k: v for k, v in self.refine.items() if k in member.Options.model_fields}
        return member(member.Options(**known))

    def refiner(self) -> Any:
        """Return the refiner of the run, ready to render pictures of its refinements.

        Raises:
            UnknownName: There is no such refiner.
        """
        if _REFINER not in self._networks:
            refiner = self.new_refiner()
            refiner.setup_render(self)
            self._networks[_REFINER] = refiner
        return self._networks[_REFINER]

    def use_refiner(self, refiner: Any) -> None:
        """Make `refiner` return this one, which the stage `refine` has already loaded."""
        self._networks[_REFINER] = refiner
