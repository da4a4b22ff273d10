"""The command `eddy`.

Owns the arguments. Each command imports what it needs when it runs, so that `eddy serve` starts without torch and
`eddy --help` without ONNX Runtime.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = build_parser(only=given[0] if given else None).parse_args(given)
    return int(options.func(options))


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole command line, or of no more than the command `only` needs."""
    parser = argparse.ArgumentParser(prog="eddy", description="Streaming inference for recurrent models.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _add_serve(commands)
    if only != "serve":  # Serving is up sooner without the imports of others.
        _add_client(commands)
    if only not in ("serve", "client"):
        _add_training(commands)
    return parser


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="serve a model repository over gRPC",
        description="Serves every model of a repository folder, models/<name>/<version>/model.onnx, until SIGTERM.",
        epilog="example: eddy serve --model-repository models --grpc-port 8500 --http-port 8501",
    )
    serve.add_argument("--model-repository", metavar="DIR", help="folder of models (default: models)")
    serve.add_argument("--host", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--grpc-port", type=int, metavar="N", help="port for gRPC, 0 for any (default: 8500)")
    serve.add_argument("--http-port", type=int, metavar="M", help="port for /metrics and /readyz (default: 8501)")
    serve.add_argument(
        "--provider",
        action="append",
        metavar="NAME",
        help="ONNX Runtime execution provider, may be repeated (default: CUDA where there is one, then CPU)",
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML file with [server], [session] and [model]")
    serve.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    serve.set_defaults(func=_serve)


def _serve(options: argparse.Namespace) -> int:
    from eddy.service.config import ConfigError, load_config

    logging.basicConfig(
        level=options.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    overrides = {
        "server.model_repository": options.model_repository,
        "server.host": options.host,
        "server.grpc_port": options.grpc_port,
        "server.http_port": options.http_port,
        "server.providers": options.provider,
    }
    try:
        config = load_config(options.config, overrides)
    except ConfigError as error:
        print(f"eddy: {error}", file=sys.stderr)
        return 2
    from eddy.service.main import serve

    return serve(config)


def _add_training(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from eddy.training import commands as training

    training.add_parsers(commands)


def _add_client(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from eddy.clients import commands as client

    client.add_parsers(commands)


if __name__ == "__main__":
    sys.exit(main())
