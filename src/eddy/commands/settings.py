"""The flags that set configuration keys.

Owns which keys have a flag of their own. Must not know values: `eddy.service.sources` reads them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eddy.service.sources import Loaded


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`, `--set` and the flags of common keys; `load` reads what they gave."""
    parser.set_defaults(settings=())
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file (default: the variable EDDY_CONFIG)")
    parser.add_argument(
        "--set",
        action=_Set,
        metavar="KEY=VALUE",
        help="any key, such as session.idle_timeout_seconds=60; may be repeated (`eddy config` lists the keys)",
    )
    for flag, key, metavar, text in (
        ("--model-repository", "server.model_repository", "DIR", "folder of models (default: models)"),
        ("--host", "server.host", "ADDRESS", "address to listen on (default: 127.0.0.1)"),
        ("--grpc-port", "server.grpc_port", "N", "port for gRPC, 0 for any (default: 8500)"),
        ("--http-port", "server.http_port", "M", "port for /metrics and /readyz, 0 for any (default: 8501)"),
        ("--tls-certificate", "server.tls_certificate", "FILE", "PEM file of the server's certificate chain"),
        ("--tls-key", "server.tls_key", "FILE", "PEM file of its private key"),
        (
            "--tls-client-ca",
            "server.tls_client_ca",
            "FILE",
            "PEM file: clients must present a certificate signed by it",
        ),
        (
            "--state-store",
            "state.store",
            "URL",
            "where sessions are kept: memory, sqlite:PATH or redis://HOST:PORT/DB (default: memory)",
        ),
        ("--log-level", "server.log_level", "LEVEL", "DEBUG, INFO, WARNING or ERROR (default: INFO)"),
    ):
        parser.add_argument(flag, action=_SetKey, const=key, metavar=metavar, help=text)
    parser.add_argument(
        "--provider",
        action=_AddProvider,
        const="server.providers",
        metavar="NAME",
        help="ONNX Runtime execution provider, may be repeated (default: CUDA where there is one, then CPU)",
    )
    parser.add_argument(
        "--allow-plaintext",
        action=_Switch,
        nargs=0,
        const="server.allow_plaintext",
        help="listen beyond loopback without TLS",
    )


def load(options: argparse.Namespace) -> Loaded:
    """The configuration of the command line's flags, the environment and the file.

    Raises:
        ConfigError: something is wrong with one of them.
    """
    from eddy.service.sources import Flag, load_config

    return load_config(options.config, os.environ, [Flag(*setting) for setting in options.settings])


class _SetKey(argparse.Action):
    """A flag of one key. `settings` collects (flag, key, text) in the order of the command line."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        namespace.settings = (*namespace.settings, (flag, self.const, values))


class _Switch(_SetKey):
    """A flag without a value: true."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        super().__call__(parser, namespace, "true", flag)


class _AddProvider(_SetKey):
    """A flag that may be repeated: each adds to a list."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        before = [setting for setting in namespace.settings if setting[0] == flag]
        namespace.settings = tuple(setting for setting in namespace.settings if setting[0] != flag)
        texts = [*(text for *_, text in before), values]
        super().__call__(parser, namespace, ",".join(texts), flag)


class _Set(argparse.Action):
    """`--set section.key=value`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        flag: str | None = None,
    ) -> None:
        key, equals, text = str(values).partition("=")
        if not equals:
            parser.error(f"--set: got {values!r}, expected section.key=value")
        namespace.settings = (*namespace.settings, (flag, key.strip(), text))
