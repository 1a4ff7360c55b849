"""The command `edits text-features`: features of two texts, for edits of StyleCLIP."""

from __future__ import annotations

import io
from pathlib import Path

import click

from dhr_batch.pipeline.cli.output import say


@click.command("text-features")
@click.option(
    "--clip",
    "weights",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CLIP ViT-B/32: ViT-B-32.pt as published, whose code is not run, or its weights alone, "
    "also with the names of transformers (model.safetensors).",
)
@click.option("--target", required=True, metavar="TEXT", help="What the edit leads to.")
@click.option(
    "--neutral", default="face", show_default=True, metavar="TEXT", help="What it starts from."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The .npz file to write, for an edit {styleclip: FILE}.",
)
def text_features(weights: Path, target: str, neutral: str, out: Path) -> None:
    """Compute features of two texts for edits of StyleCLIP.

    The vocabulary of CLIP is the model clip-vocabulary.

    \b
    Example:
      dhr-batch edits text-features --clip CLIP.pt --target beard --out beard.npz
    """
    import numpy as np

    from dhr_batch.pipeline.errors import Refused
    from dhr_batch.pipeline.files import require_absent, whole
    from dhr_batch.pipeline.models import catalogue
    from dhr_batch.stages.networks import clip_text

    if out.suffix != ".npz":
        raise Refused(f"--out {out}", "it is not the name of an .npz file", "end it with .npz")
    require_absent(out)
    tokenizer = clip_text.Tokenizer(catalogue.path(clip_text.VOCABULARY))
    try:
        net = clip_text.load(weights)
        target_features, neutral_features = (
            clip_text.prompt_features(net, tokenizer, text).numpy() for text in (target, neutral)
        )
    except ValueError as error:
        raise Refused("edits text-features", str(error)) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        target=target_features,
        neutral=neutral_features,
        texts=np.array([target, neutral]),
    )
    with whole(out) as part:
        part.write_bytes(buffer.getvalue())
    say(f"{out}: use it as an edit {{styleclip: {out}}}")
