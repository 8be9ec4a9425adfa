"""Options and arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from omokage.errors import OutputError

Command = TypeVar("Command", bound=Callable[..., Any])
FilePath = click.Path(path_type=Path)
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


size_option = click.option(
    "--size",
    type=click.Choice([128, 256, 512]),
    default=256,
    show_default=True,
    help="Picture side in pixels.",
)


label_option = click.option(
    "--label", help="On every picture: any text, or a profile such as eu, jp or cn (see `omokage labels`)."
)


purpose_option = click.option(
    "--purpose",
    help="What it is for, of what the person agreed to; needed where that is more than one thing.",
)


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those that `torchrun` started."""
    return os.environ.get("RANK", "0") == "0"


def output_option(help_text: str, *, is_required: bool = True) -> Callable[[Command], Command]:
    return click.option("-o", "--output", type=FilePath, required=is_required, help=help_text)


def drawing_options(command: Command) -> Command:
    """What may be asked of pictures that an avatar is drawn in."""
    for option in (
        click.option(
            "--runtime",
            type=click.Choice(["auto", "torch", "onnxruntime", "openvino", "cuda-graph", "compiled"]),
            default="auto",
            show_default=True,
            help="What computes the pictures; the last two are of the paper's networks on a graphics card.",
        ),
        label_option,
        purpose_option,
        click.option(
            "--background",
            default="own",
            show_default=True,
            help="own, transparent, a color as #rrggbb, or a picture file.",
        ),
    ):
        command = option(command)
    return command


def refuse_same_file(output: Path, *inputs: Path) -> None:
    """Never let a result replace what it is made from."""
    for given in inputs:
        if output.exists() and given.exists() and output.samefile(given):
            raise OutputError(f"the output {output} is also an input; give -o another name")
