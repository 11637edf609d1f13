"""`localgemma models`: find, download, check, link, carry and remove model files."""

from __future__ import annotations

import click

from localgemma.cli.lazy import LazyGroup

_LOCAL = "localgemma.cli.models_local"
_TABLE = {
    "list": ("localgemma.cli.models_list", "What is here, and what could be."),
    "show": ("localgemma.cli.models_show", "What a model's header says, downloaded or not."),
    "pull": ("localgemma.cli.models_pull", "Download a model with its projector and drafter."),
    "verify": ("localgemma.cli.models_verify", "Check every byte of what is here."),
    "import": ("localgemma.cli.models_import", "Use a model file that is already on this machine."),
    "rm": (f"{_LOCAL}:rm", "Remove a model."),
    "prune": (f"{_LOCAL}:prune", "Remove what is no longer needed."),
    "outdated": ("localgemma.cli.models_update:outdated", "Which files their publishers have replaced since."),
    "update": ("localgemma.cli.models_update:update", "Download what was replaced, where it is worth it."),
    "bundle": (f"{_LOCAL}:bundle", "Pack a model into one file for a machine without a network."),
    "unbundle": (f"{_LOCAL}:unbundle", "Check and install such a file."),
}


@click.group(cls=LazyGroup, table=_TABLE, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Find, download, check, link, carry and remove model files.

    A name is MODEL[:QUANT][@PUBLISHER], like gemma-4-31b, gemma-4-31b:Q4_K_M or gemma-4-31b@unsloth.
    """
