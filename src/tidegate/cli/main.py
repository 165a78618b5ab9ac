"""``tidegate``: the commands, and how errors are told.

Frameworks and the serving parts are imported by the commands that need them, so that
``tidegate version`` is quick and a bare install has a working command line.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from tidegate import __version__
from tidegate.cli import completion
from tidegate.cli.bench import bench
from tidegate.cli.exits import INTERRUPTED
from tidegate.cli.options import (
    gateway_options,
    node_options,
    settings_options,
    which_node,
)
from tidegate.errors import ConfigurationError, TidegateError
from tidegate.protocols.statuses import status_of

_DEBUG = "TIDEGATE_DEBUG"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What a disk says that takes nothing more."""


class _ReaderLeft(Exception):
    """Whoever read the output has gone, as ``| head`` does."""


class _Commands(click.Group):
    """The commands; click itself would end with status 1 when the reader has left."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderLeft from error


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Commands, context_settings=_SETTINGS)
@click.option("--debug", is_flag=True, help=f"show tracebacks and log more  [{_DEBUG}]")
@click.version_option(__version__, prog_name="tidegate")
def cli(debug: bool) -> None:
    """Drop models into a folder, run one command, call them with the clients you have."""
    if debug:
        os.environ[_DEBUG] = "1"


@cli.command(short_help="Serve the models in a folder until Ctrl-C or SIGTERM.")
@click.argument("repository", type=click.Path(path_type=Path))
@node_options()
def serve(repository: Path, **options: object) -> int:
    """Serve the models in the folder REPOSITORY until Ctrl-C or SIGTERM.

    Each option can also be set by a variable (in brackets) or in REPOSITORY/tidegate.yaml;
    the command line counts most, then the variable, then the file.
    """
    from tidegate.cli.serving import serve as run

    return run(repository, options)


@cli.command(short_help="Put one address in front of many machines.")
@click.argument("file", type=click.Path(path_type=Path))
@gateway_options()
def gateway(file: Path, **options: object) -> int:
    """Put one address in front of the machines that FILE, a gateway.yaml, names.

    A change of FILE counts at once. Each option can also be set by a variable (in brackets) or in
    FILE; the command line counts most, then the variable, then the file.
    """
    from tidegate.cli.serving import gateway as run

    return run(file, options)


@cli.command(short_help="Show what a model's file or folder, or a repository is.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--no-load", is_flag=True, help="do not load models to read their signatures")
def inspect(path: Path, as_json: bool, no_load: bool) -> int:
    """Show what PATH is: a model file, a model's folder or a repository.

    The exit status is 65 when something there is invalid.
    """
    from tidegate.cli.inspection import inspect as run

    return run(path, as_json=as_json, load=not no_load)


@cli.command(short_help="Show the nodes and gateways of this user.")
@which_node
@click.option("--endpoints", is_flag=True, help="of a gateway, each endpoint: its state and why")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def status(port: str | None, run_dir: str | None, endpoints: bool, as_json: bool) -> int:
    """Show the nodes and gateways of this user: models, versions, replicas, endpoints.

    With --port, that one alone.
    """
    from tidegate.cli.nodes import status as run

    return run(port, run_dir, as_json=as_json, endpoints=endpoints)


@cli.command()
@which_node
@click.option("--all", "every", is_flag=True, help="stop every node of this user")
def stop(port: str | None, run_dir: str | None, every: bool) -> int:
    """Stop a node: running requests are answered first.

    Without --port, the only one that runs.
    """
    from tidegate.cli.nodes import stop as run

    return run(port, run_dir, every=every)


@cli.command(short_help="Show the logs of a model's replicas, the edge, the controller.")
@click.argument("of", metavar="MODEL|edge|controller", shell_complete=completion.logs)
@click.option("--version", type=click.IntRange(1), metavar="V", help="this version alone")
@click.option("--replica", type=click.IntRange(0), metavar="N", help="this replica alone, from 0")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True,
              metavar="N", help="begin with the last N lines of each log")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="go on with what is written, until Ctrl-C")
@click.option("--json", "as_json", is_flag=True, help="print a JSON object a line")
@which_node
def logs(
    of: str,
    version: int | None,
    replica: int | None,
    lines: int,
    follow: bool,
    as_json: bool,
    port: str | None,
    run_dir: str | None,
) -> int:
    """Show the logs of a running node: of a model's replicas, the edge or the controller.

    Where there are several replicas, each line begins with MODEL/VERSION/REPLICA.
    """
    from tidegate.cli.logs import logs as run

    return run(of, version, replica, port, run_dir, lines=lines, follow=follow, as_json=as_json)


@cli.command()
@click.argument("model", shell_complete=completion.models_or_paths)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...", type=click.Path())
@click.option("-d", "--data", metavar="JSON", help="a request in JSON, as '{\"x\": [[1, 2]]}'")
@click.option("--raw", is_flag=True, help="each INPUT holds the bytes of the model's only input")
@click.option("--scale", metavar="X", help="what the values of an image are multiplied with, "
              "as 1/255  [default: 1/255 for floating-point inputs, else 1]")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["table", "json", "v2"]),
              help="how to print an answer: v2 is that of the Open Inference Protocol  [default: "
              "table in a terminal, else json]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="print JSON: short for --format json")
@click.option("--version", type=click.IntRange(1), metavar="V", help="this version")
@click.option("--model", "name", metavar="NAME", help="of a repository, this model")
@click.option("--device", metavar="DEVICE", help="in this process: auto, cpu, cuda or cuda:N")
@click.option("--url", metavar="URL", help="a server: http://HOST:PORT or grpc://HOST:PORT; with "
              "TLS https:// or grpcs://")  # fmt: skip
@click.option("--ca-file", type=click.Path(path_type=Path), metavar="FILE", help="certificates "
              "(PEM) of who vouches for the server  [default: the usual authorities]")  # fmt: skip
@click.option("--certificate-file", type=click.Path(path_type=Path), metavar="FILE",
              help="a certificate (PEM) for a server that wants one of its clients")  # fmt: skip
@click.option("--key-file", type=click.Path(path_type=Path), metavar="FILE",
              help="its private key")  # fmt: skip
@which_node
@click.option("--timeout", metavar="TIME", help="the longest that an answer of a server may take "
              "[default: 60s]")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True,
              metavar="N", help="of several requests, so many are with a server at once; the "
              "answers keep their order")  # fmt: skip
def infer(**options: Any) -> int:
    """Ask MODEL for the answer to each INPUT.

    MODEL is a model of the node of this machine, or of the server at --url; or the path of a
    model or a repository, which is then loaded in this process. INPUT is a
    file with JSON, an array (.npy), arrays by name (.npz) or an image, or '-': then each line
    of standard input is a request in JSON or the name of such a file.

    The exit status is 1 when there were several requests and some failed.
    """
    from tidegate.cli.inference import Asked
    from tidegate.cli.inference import infer as run

    return run(Asked(**options))


@cli.command(short_help="Load a model on a running node, or read it again.")
@click.argument("model", shell_complete=completion.models)
@which_node
@click.option("--json", "as_json", is_flag=True, help="print the model's state as JSON")
def load(model: str, port: str | None, run_dir: str | None, as_json: bool) -> int:
    """Load MODEL on a running node, or read it again; done when it is ready."""
    from tidegate.cli.control import control as run

    return run("load", model, port, run_dir, as_json=as_json)


@cli.command()
@click.argument("model", shell_complete=completion.models)
@which_node
@click.option("--json", "as_json", is_flag=True, help="print the model's state as JSON")
def unload(model: str, port: str | None, run_dir: str | None, as_json: bool) -> int:
    """Take MODEL out of a running node, until it is loaded again."""
    from tidegate.cli.control import control as run

    return run("unload", model, port, run_dir, as_json=as_json)


@cli.group(short_help="Write a file to begin with, as a model's hooks.py.")
def init() -> None:
    """Write a file to begin with."""


@init.command(name="hooks", short_help="Write a commented hooks.py into a model's folder.")
@click.argument("path", type=click.Path(path_type=Path), default=".")
def init_hooks(path: Path) -> int:
    """Write a commented hooks.py into the model's folder PATH: code that runs around the model.

    Without PATH, into this folder.
    """
    from tidegate.cli.templates import write_hooks

    return write_hooks(path)


@cli.command(name="completion", short_help="Print the script for completion in a shell.")
@click.argument("shell", type=click.Choice(completion.SHELLS))
def print_completion(shell: str) -> int:
    """Print the script with which SHELL completes commands, options and models.

    For bash, put this into ~/.bashrc: eval "$(tidegate completion bash)"
    """
    return completion.print_script(cli, shell)


@cli.command(short_help="Check whether serving, or a gateway, would work here.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@settings_options(["host", "port", "admin_port", "envoy", "run_dir", "admin_host"])
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def doctor(file: Path | None, as_json: bool, **options: object) -> int:
    """Check what serving needs: Envoy, runtimes, GPUs, ports, limits, proxies.

    With FILE, a gateway.yaml, check what that gateway needs: its settings, certificates and keys,
    and every endpoint, which is asked whether it is ready and speaks the protocol that FILE says.

    The exit status is 1 when something would keep 'tidegate serve', or the gateway, from working.
    """
    from tidegate.cli.doctor import doctor as run

    return run(file, options, as_json=as_json)


@cli.command(short_help="Show every setting of a server or a model, and its origin.")
@click.argument("place", metavar="[REPOSITORY|FILE]", type=click.Path(path_type=Path), default=".")
@click.option("--model", metavar="NAME", help="the settings of this model of REPOSITORY")
@click.option("--show-origin", is_flag=True, help="tell where each value came from")
@click.option("--json", "as_json", is_flag=True, help="print JSON, origins included")
@settings_options()
def config(
    place: Path, model: str | None, show_origin: bool, as_json: bool, **options: object
) -> int:
    """Show every setting of a node that serves the folder REPOSITORY, or of a gateway.

    The command line counts most, then the environment, then REPOSITORY/tidegate.yaml or, for a
    gateway, its FILE. With --model, the settings of that model, as its model.yaml has them.
    """
    from tidegate.cli.settings import config as run

    if model is not None and any(value is not None for value in options.values()):
        raise click.UsageError("--model shows a model's settings, which are in its model.yaml")
    return run(place, model, options, show_origin=show_origin, as_json=as_json)


@cli.command(short_help="Write the .proto files of every protocol into a folder.")
@click.argument("folder", type=click.Path(path_type=Path))
def protos(folder: Path) -> int:
    """Write the .proto files of every protocol into FOLDER, to generate clients from."""
    from tidegate.cli.protos import write_protos

    return write_protos(folder)


@cli.command(short_help="Print the versions of Tidegate, Python and the runtimes.")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def version(as_json: bool) -> int:
    """Print the versions of Tidegate, Python, Envoy and the runtimes."""
    from tidegate.cli.versions import print_versions

    return print_versions(as_json=as_json)


cli.add_command(bench)


def main() -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; return the exit status. Errors become one line on stderr."""
    try:
        done: Any = cli.main(arguments, prog_name="tidegate", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except _ReaderLeft:
        # Nothing may be written any more, also not as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TidegateError as error:
        return _tell(error, str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            where = f"{error.filename}: " if error.filename else ""
            disk = f"{where}{error.strerror}; make room, or give another place with --run-dir"
            return _tell(ConfigurationError(disk), disk)
        what = f"{type(error).__name__}: {error}"
        return _tell(error, f"{what} (a fault of Tidegate; {_DEBUG}=1 shows where)")
    return done if isinstance(done, int) else 0


def _tell(error: Exception, message: str) -> int:
    if os.environ.get(_DEBUG):
        traceback.print_exception(error)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    return status_of(error).exit
