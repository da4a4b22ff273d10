"""`eddy serve`: the arguments and the start; the rest is `eddy.service.main`."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from eddy.commands.parser import MISUSE, fail
from eddy.commands.settings import add_settings, load

if TYPE_CHECKING:
    from eddy.commands.parser import Commands

_EXAMPLES = """\
examples:
  eddy serve
  eddy serve --model-repository models --grpc-port 8500 --http-port 8501
  eddy serve --config eddy.toml --set session.idle_timeout_seconds=60
  eddy serve --host 0.0.0.0 --tls-certificate server.pem --tls-key server.key
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "serve",
        help="serve a model repository over gRPC",
        description="Serves every model of a repository folder, <name>/<version>/model.onnx, until SIGTERM.",
        epilog=_EXAMPLES,
    )
    add_settings(parser)
    parser.set_defaults(func=_run)


def _run(options: argparse.Namespace) -> int:
    from eddy.service.config import ConfigError

    try:
        config = load(options).config
    except ConfigError as error:
        return fail(error, MISUSE)
    logging.basicConfig(
        level=config.server.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    from eddy.service.polling import let_completion_queue_poll

    let_completion_queue_poll()
    from eddy.service.main import serve

    return serve(config)
