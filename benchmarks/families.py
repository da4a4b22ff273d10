"""Models of every family with random weights, of sizes as the shipped models have.

`python -m benchmarks.families DIRECTORY NAME...` writes them as a model repository. It needs torch, because families
are defined in it; what measures them does not, and runs in other processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.models import model_path
from eddy.training.export import draw_model, export_graphs
from eddy.training.families.bidirectional.spec import BidirectionalSpec
from eddy.training.families.recurrent.parts import Attention, Convolution, FrameConvolution
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.families.registry import build_contract
from eddy.training.families.translation.spec import TranslationSpec
from eddy.training.spec import ClassHead, FeatureInput, FrameInput, QuantileHead, Spec, TokenHead, TokenInput

_HIDDEN = 128
# A small alphabet; one sensor, its time of day and its differences; a watch's accelerometer and gyroscope.
_LETTERS, _SERIES, _SENSORS = (
    TokenInput(96, 32),
    FeatureInput((0.0,) * 4, (2.0,) * 4),
    FeatureInput((0.0,) * 6, (2.0,) * 6),
)
_NEXT_LETTER = (TokenHead(96),)
_FORECAST = (QuantileHead((1, 3, 6, 9, 12), (0.1, 0.5, 0.9)),)
_ACTIVITY = (ClassHead("activity", tuple("abcdefg")),)
_ANSWERS = (ClassHead("digit", tuple("0123456789")), ClassHead("direction", ("left", "right", "up", "down")))
_ACCENTED = (ClassHead("letter", tuple(map(str, range(16))), "tagging"),)
_PIECES = 800

# One layer has the width of the shipped text models; LSTM 128 alone is `packed_128`.
SPECS: dict[str, Spec] = {
    "rnn": RecurrentSpec("rnn_tanh", 1, 256, _LETTERS, _NEXT_LETTER),
    "gru": RecurrentSpec("gru", 1, 192, _LETTERS, _NEXT_LETTER),
    "lstm": RecurrentSpec("lstm", 1, 192, _LETTERS, _NEXT_LETTER),
    "residual": RecurrentSpec("lstm", 4, _HIDDEN, _LETTERS, _NEXT_LETTER, residual=True),
    "learned_state": RecurrentSpec("gru", 2, _HIDDEN, _SERIES, _FORECAST, learned_state=True),
    "conv1d_gru": RecurrentSpec(
        "gru", 1, _HIDDEN, _SENSORS, _ACTIVITY, convolutions=(Convolution(32, 5), Convolution(64, 5, 2))
    ),
    "conv2d_lstm": RecurrentSpec(
        "lstm",
        1,
        _HIDDEN,
        FrameInput(16, 16),
        _ANSWERS,
        frame_convolutions=(FrameConvolution(16, pool=2), FrameConvolution(32, pool=2)),
    ),
    "attention": RecurrentSpec("lstm", 1, _HIDDEN, _LETTERS, _NEXT_LETTER, attention=Attention(32)),
    "bidirectional": BidirectionalSpec("lstm", 2, _HIDDEN, _LETTERS, _ACCENTED),
    "translation": TranslationSpec("gru", 160, TokenInput(_PIECES, 112), (TokenHead(_PIECES),)),
}


def main(arguments: Sequence[str]) -> int:
    """Writes the models asked for."""
    root, *names = arguments
    for name in names:
        path = model_path(Path(root), name)
        path.parent.mkdir(parents=True)
        model = draw_model(SPECS[name])
        export_graphs(model, path.parent, build_contract(model, name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
