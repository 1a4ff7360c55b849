"""GANSpace's edit in the edit stage: targets, rows of other generators, and files of components."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dhr_batch.stages.context import Context
from dhr_batch.stages.edit.direction_files import DirectionError, settings_of, shipped_edits
from dhr_batch.stages.edit.directions import Directions
from dhr_batch.stages.edit.ganspace import read
from dhr_batch.stages.edit.rerender import Rerender
from dhr_batch.stages.networks.generators.generator import Generator
from dhr_batch.stages.networks.generators.stylegan2 import StyleGAN2
from dhr_batch.stages.record import Record
from dhr_batch.stages.tensors import tensor_to_images


def components(seed: int = 0, count: int = 80) -> dict[str, torch.Tensor]:
    """Numbers in the layout of ffhq_pca.pt."""
    draw = torch.Generator().manual_seed(seed)
    comp = torch.randn(count, 512, generator=draw)
    return {
        "mean": 0.1 * torch.randn(1, 512, generator=draw),
        "comp": (comp / comp.norm(dim=1, keepdim=True))[:, None],
        "std": torch.linspace(2, 0.5, count),
    }


@pytest.fixture
def file(tmp_path: Path) -> str:
    torch.save(components(), tmp_path / "ffhq_pca.pt")
    return str(tmp_path / "ffhq_pca.pt")


@pytest.fixture(scope="module")
def context() -> Context:
    return Context("cpu", "tiny", models=lambda name: Path(name))


def record(context: Context, seed: int = 0) -> Record:
    generator: Generator = context.network("generator", context.generator)
    draw = torch.Generator().manual_seed(seed)
    ws = generator.broadcast(generator.map(torch.randn(1, 512, generator=draw)))
    image = tensor_to_images(generator.synthesize(ws))[0]
    return Record(f"{seed}", "s", latent=ws[0].numpy().copy(), refined=image)


def stage(context: Context, *edits: dict[str, Any]) -> Directions:
    made = Directions(Directions.Options.model_validate({"edits": edits}))
    made.setup(context)
    return made


def coordinate(pca: dict[str, torch.Tensor], latent: np.ndarray, number: int) -> float:
    centred = torch.from_numpy(latent[0]) - pca["mean"][0]
    return float(centred @ pca["comp"][number, 0] / pca["std"][number])


def test_a_strength_is_the_new_coordinate_and_0_is_the_mean(context: Context, file: str) -> None:
    edit = {"ganspace": file, "component": 3, "rows": [0, 18], "strengths": [-4, 0, 4]}
    before = record(context)
    after = stage(context, edit).run([before])[0]
    assert after.failure is None
    assert [(e.name, e.strength) for e in after.edits] == [("pc3", s) for s in (-4, 0, 4)]
    pca = components()
    for found in after.edits:
        assert coordinate(pca, found.latent, 3) == pytest.approx(found.strength, abs=1e-4)
    # The coordinate of the code is not 0, so 0 is an edit.
    assert not np.array_equal(after.edits[1].image, before.refined)
    assert before.latent is not None
    own = coordinate(pca, before.latent, 3)
    assert [e.start for e in after.edits] == pytest.approx([own] * 3, abs=1e-5)


def test_the_start_changes_nothing(context: Context, file: str) -> None:
    before = record(context)
    assert before.latent is not None
    own = coordinate(components(), before.latent, 3)
    edit = {"ganspace": file, "component": 3, "rows": [0, 18], "strengths": [own]}
    found = stage(context, edit).run([before])[0].edits[0]
    np.testing.assert_allclose(found.latent, before.latent, atol=1e-5)
    assert before.refined is not None
    assert np.abs(found.image.astype(int) - before.refined).max() <= 1


def test_the_end_of_the_rows_is_not_changed(context: Context, file: str) -> None:
    """Rows 0 and 1 of StyleGAN2 are those of the first convolution and of the first block."""
    edit = {"ganspace": file, "component": 0, "rows": [0, 1], "strengths": [9]}
    before = record(context)
    found = stage(context, edit).run([before])[0].edits[0]
    moved = np.abs(found.latent - before.latent).max(1) > 0
    assert moved.nonzero()[0].tolist() == [0]


def test_rows_of_stylegan2_are_placed_as_those_of_directions(context: Context, file: str) -> None:
    generator = context.network("generator", "tiny")
    for first, last in ((0, 3), (2, 5), (0, 18)):
        marks = torch.zeros(18, 512)
        marks[first:last] = 1
        wanted = generator.expand_direction(marks).any(1)
        edit = {"ganspace": file, "component": 1, "rows": [first, last], "strengths": [5]}
        before = record(context)
        found = stage(context, edit).run([before])[0].edits[0]
        moved = np.abs(found.latent - before.latent).max(1) > 0
        np.testing.assert_array_equal(moved, wanted.numpy())


def test_a_smaller_stylegan2_has_the_same_first_rows(context: Context, file: str) -> None:
    small = StyleGAN2((8, 8, 8, 8))
    edits = {"ganspace": file, "component": 1, "strengths": [5]}
    edit = Directions.Options.model_validate({"edits": [edits | {"rows": [5, 7]}]}).edits[0]
    loaded = edit.load(context.models)
    loaded.fit(small)
    ws = torch.zeros(2, small.num_ws, 512)
    moved = (loaded.apply(ws, 5.0)[0] != 0).any(2)
    assert [row.nonzero().flatten().tolist() for row in moved] == [[5, 6]] * 2
    absent = Directions.Options.model_validate({"edits": [edits | {"rows": [7, 9]}]}).edits[0]
    with pytest.raises(DirectionError, match=r"pc1: rows 7 to 8 of StyleGAN2 .* have 8 rows"):
        absent.load(context.models).fit(small)


def test_results_do_not_depend_on_batches(context: Context, file: str) -> None:
    edit = stage(context, {"ganspace": file, "component": 7, "rows": [0, 9]}).moves[0].edit
    ws = torch.from_numpy(np.stack([np.asarray(record(context, i).latent) for i in range(3)]))
    together, starts = edit.apply(ws, 2.0)[0], edit.start(ws)
    for i in range(3):
        assert torch.allclose(edit.apply(ws[i : i + 1], 2.0)[0][0], together[i], atol=1e-6)
        assert float(edit.start(ws[i : i + 1])) == pytest.approx(float(starts[i]), abs=1e-5)


def test_shipped_edits_are_those_of_the_publication(file: str) -> None:
    """HFGI's scripts/inference.py: component, rows and target."""
    wanted = {"eyes": (54, 7, 8, 20), "beard": (58, 7, 9, -20), "lip": (34, 10, 11, 20)}
    assert set(wanted) <= set(shipped_edits())
    for name, (number, first, last, target) in wanted.items():
        edit = Directions.Options.model_validate({"edits": [{"direction": name}]}).edits[0]
        assert edit.model_dump() == {
            "ganspace": "ganspace-ffhq",
            "component": number,
            "rows": (first, last),
            "strengths": (target,),
            "label": name,
        }
        assert edit.models() == {"ganspace-ffhq"}


def test_names_and_files_of_settings_reach_the_stage(context: Context, file: str) -> None:
    found = Context("cpu", "wide", models=lambda name: Path(file).with_name(f"{name}.pt"))
    found._networks["generator", "wide"] = StyleGAN2((8,) * 9)
    Path(file).rename(Path(file).with_name("ganspace-ffhq.pt"))
    file = str(Path(file).with_name("ganspace-ffhq.pt"))
    made = stage(found, {"direction": "eyes", "strengths": [-3, 3]})
    assert [(m.name, m.strength) for m in made.moves] == [("eyes", -3), ("eyes", 3)]
    mine = Path(file).with_name("mine.yaml")
    mine.write_text(f"{{ganspace: {file}, component: 2, rows: [0, 4]}}")
    before = record(context)
    after = Rerender(context, [(str(mine), 3.0), (str(mine), 0.0)])(before)
    assert [(e.name, e.strength) for e in after.edits] == [("mine", 3.0), ("mine", 0.0)]
    by_options = stage(context, {"ganspace": file, "component": 2, "rows": [0, 4]})
    assert after.edits[0].direction_sha256 == by_options.moves[0].edit.sha256


def test_the_checksum_is_that_of_the_numbers(context: Context, file: str) -> None:
    np.savez(Path(file).with_name("x.npz"), **{k: v.numpy() for k, v in components().items()})

    def sha(**changed: Any) -> str:
        edit = {"ganspace": file, "component": 2, "rows": [0, 4], "strengths": [1]} | changed
        return stage(context, edit).moves[0].edit.sha256

    assert sha(ganspace=str(Path(file).with_name("x.npz"))) == sha() != sha(component=3)
    assert sha() != sha(rows=[0, 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [8, 8]}, r"rows are \[A, B\]"),
        ({"rows": [0, 19]}, r"rows are \[A, B\]"),
        ({"component": -1}, "greater than or equal to 0"),
        ({"direction": "smile"}, "exactly one of: direction, ganspace"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    edit = {"ganspace": "a.pt", "component": 0, "rows": [0, 1]} | change
    with pytest.raises(ValidationError, match=message):
        Directions.Options.model_validate({"edits": [edit]})


def test_an_edit_without_a_kind_is_refused() -> None:
    with pytest.raises(ValidationError, match="exactly one of: direction, ganspace"):
        Directions.Options.model_validate({"edits": [{"strengths": [1]}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("comp"), r"x\.pt: .* no array 'comp', only: mean, std"),
        (lambda c: c.update(mean=torch.zeros(18, 512)), r"x\.pt: .*cannot reshape"),
        (lambda c: c.update(std=torch.ones(3)), r"x\.pt: .*cannot reshape"),
        (lambda c: c.update(std=torch.zeros(80)), r"x\.pt: .*standard deviation is not positive"),
        (lambda c: c["comp"].fill_(torch.nan), r"x\.pt: .*not finite"),
        (lambda c: c.update(mean="text"), r"x\.pt: .* no array 'mean'"),
    ],
)
def test_wrong_files_are_named(change: Any, message: str, tmp_path: Path) -> None:
    content = components()
    change(content)
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(DirectionError, match=message):
        read(tmp_path / "x.pt")


def test_files_that_are_no_components_are_named(context: Context, tmp_path: Path) -> None:
    with pytest.raises(DirectionError, match=r"none\.pt: the file does not exist"):
        read(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(DirectionError, match=r"text\.pt.* cannot be read"):
        read(tmp_path / "text.pt")
    torch.save(components(count=8), tmp_path / "few.pt")
    edit = {"ganspace": str(tmp_path / "few.pt"), "component": 54, "rows": [7, 8]}
    with pytest.raises(DirectionError, match=r"few\.pt: there is no component 54.*0 to 7"):
        stage(context, edit)
    with pytest.raises(DirectionError, match=r"few\.pt: the file holds principal components.*rows"):
        stage(context, {"direction": str(tmp_path / "few.pt")})
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(DirectionError, match=r"list\.yaml: it has no settings of an edit"):
        settings_of(str(tmp_path / "list.yaml"))
