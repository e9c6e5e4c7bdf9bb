"""Commands about weights files: `models download`, `models convert`, `models verify`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Config = Annotated[
    Path | None,
    typer.Option(help="config.json with the architecture's sizes, where they are not full."),
]


def download(
    repository: Annotated[str, typer.Argument(help="Hub id, e.g. `facebook/sam3`.")],
    to: Annotated[Path | None, typer.Option(help="Folder; default the hub's cache.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a checkpoint from the Hugging Face hub, going on where a download stopped.

    Example: `medsam3 models download facebook/sam3`
    """
    from medsam3_model.checkpoints import hub

    folder = hub.download(repository, revision=revision, folder=to, progress=not as_json)
    _print({"folder": str(folder)}, as_json)


def convert(
    source: Annotated[str, typer.Argument(help="A file, a folder, a hub id, a bundled model.")],
    destination: Annotated[Path, typer.Argument(help="A new .safetensors file, or a folder.")],
    adapter: Annotated[Path | None, typer.Option(help="LoRA adapter to merge.")] = None,
    config: Config = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    as_json: AsJson = False,
) -> None:
    """Rewrite a checkpoint as safetensors, an adapter merged in.

    Example: `medsam3 models convert sam3.pt medsam3-v1 --adapter best_lora_weights.pt`
    """
    from medsam3_model.checkpoints import conversion

    made = conversion.convert(source, destination, adapter, config=config, dtype=dtype)
    _print({**asdict(made), "path": str(made.path)}, as_json)


def verify(
    checkpoint: Annotated[str, typer.Argument(help="A file, a folder, a hub id, a bundled model.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Read a weights file whole and say what it is and what is wrong with it.

    Example: `medsam3 models verify sam3.pt`
    """
    from medsam3_model.checkpoints import conversion

    found = conversion.verify(checkpoint, config=config)
    _print({**asdict(found), "path": str(found.path), "ok": found.ok}, as_json)
    raise typer.Exit(0 if found.ok else 1)


def _print(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        if isinstance(value, tuple | list):
            typer.echo(f"{name}: {'none' if not value else ''}")
            for one in value:
                typer.echo(f"  {one}")
        elif value is not None and value != {}:
            typer.echo(f"{name}: {value}")
