"""Limits of what is read from a model file that somebody else made.

Owns the numbers and the reason for each. Must not know how files are read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file may hold; beyond any of them it is refused.

    Attributes:
        max_file_bytes: the model's file and the data beside it together. A graph and its weights are handed to the
            runtime as one protobuf message, which ends at 2 GiB, and inspection rewrites copies of it.
        max_nodes: with those of subgraphs and functions. Layers unrolled over hundreds of steps have tens of thousands;
            a runtime's optimizers take more than linear time.
        max_ports: inputs, and outputs, of the main graph. Models with a cache a layer have hundreds of states.
        max_depth: graphs within graphs. Exporters nest two or three.
        max_function_depth: functions that call functions.
        max_rank: axes of a tensor. numpy has no more.
        max_elements: of a declared shape. 4 GiB of float32: no input of a step is as large, terabytes are a mistake or
            an attack.
        max_name_characters: exporters write paths of modules, no more than a few hundred characters.
    """

    max_file_bytes: int = 1 << 30
    max_nodes: int = 100_000
    max_ports: int = 1024
    max_depth: int = 16
    max_function_depth: int = 32
    max_rank: int = 64
    max_elements: int = 1 << 30
    max_name_characters: int = 1024
