"""``tidegate completion``: the script for a shell, and the names of models that it offers."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem, ShellComplete, get_completion_class

from tidegate.errors import TidegateError

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_TIDEGATE_COMPLETE"
"""What the script sets to ask for completions."""
_ANSWER_TIMEOUT = 0.5
_PROCESSES = ("controller", "edge")


def print_script(cli: click.Command, shell: str) -> int:
    """Print the script that a shell reads to complete ``tidegate``."""
    kind = get_completion_class(shell)
    assert kind is not None
    # Not the method of bash's class: it runs a bash to complain of old ones.
    click.echo(ShellComplete.source(kind(cli, {}, "tidegate", VARIABLE)))
    return 0


def models(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the models of the running nodes."""
    from tidegate.cli.running import chosen_nodes, state_of

    names: set[str] = set()
    try:
        options = context.params
        for node in chosen_nodes(options.get("port"), options.get("run_dir")):
            state = state_of(node, _ANSWER_TIMEOUT)
            names.update(model["name"] for model in state.get("models", ()))
    except (TidegateError, OSError):
        return []  # there is nobody to tell
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def logs(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer what has logs: the models, the edge and the controller."""
    own = [CompletionItem(name) for name in _PROCESSES if name.startswith(incomplete)]
    return [*models(context, parameter, incomplete), *own]


def models_or_paths(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the models of the running nodes, and else what the shell has: paths."""
    found = models(context, parameter, incomplete)
    return found or [CompletionItem(incomplete, type="file")]
