"""Examples of the recurrent family: a small specification of every variant, for laws and benchmarks."""

from eddy.training.families.recurrent.parts import Attention, Convolution, FrameConvolution
from eddy.training.families.recurrent.spec import RecurrentSpec
from eddy.training.spec import (
    INT8,
    ClassHead,
    FeatureInput,
    FrameInput,
    LinearHead,
    QuantileHead,
    TokenHead,
    TokenInput,
)

_VALUES = FeatureInput((1.0, -2.0, 0.0), (2.0, 0.5, 1.0))
_TOKENS = TokenInput(11, 6)
_SYMBOLS = (TokenHead(11),)
_PLAIN = (LinearHead(3),)
_FORECAST = (QuantileHead((1, 4), (0.1, 0.5, 0.9), target=1),)
_ACTIVITIES = (ClassHead("activity", ("rest", "walk", "run")),)
_ANSWERS = (ClassHead("digit", ("zero", "one", "two")), ClassHead("direction", ("left", "right")))


def recurrent_examples() -> dict[str, RecurrentSpec]:
    """Name -> specification. Every cell, depth, input, head, and each part alone and with others."""
    return {
        "rnn-tanh": RecurrentSpec("rnn_tanh", 1, 12, _VALUES, _PLAIN),
        "rnn-relu": RecurrentSpec("rnn_relu", 2, 12, _VALUES, _PLAIN),
        "gru": RecurrentSpec("gru", 1, 12, _VALUES, _FORECAST),
        "lstm": RecurrentSpec("lstm", 1, 12, _TOKENS, _SYMBOLS),
        "lstm-2-layers": RecurrentSpec("lstm", 2, 12, _TOKENS, _SYMBOLS, dropout=0.1),
        "lstm-4-layers-residual": RecurrentSpec("lstm", 4, 12, _TOKENS, _SYMBOLS, dropout=0.1, residual=True),
        "lstm-int8": RecurrentSpec("lstm", 2, 12, _TOKENS, _SYMBOLS, precision=INT8),
        "gru-int8": RecurrentSpec("gru", 2, 12, _VALUES, _PLAIN, precision=INT8),
        "rnn-int8": RecurrentSpec("rnn_tanh", 1, 12, _VALUES, _PLAIN, learned_state=True, precision=INT8),
        "gru-4-layers-residual": RecurrentSpec("gru", 4, 12, _VALUES, _PLAIN, residual=True),
        "lstm-learned-state": RecurrentSpec("lstm", 2, 12, _TOKENS, _SYMBOLS, learned_state=True),
        "rnn-learned-state": RecurrentSpec("rnn_tanh", 1, 12, _VALUES, _PLAIN, learned_state=True),
        "conv1d-gru": RecurrentSpec(
            "gru", 1, 12, _VALUES, _ACTIVITIES, convolutions=(Convolution(8, 3), Convolution(10, 3, 2, "tanh"))
        ),
        "conv1d-lstm-tokens": RecurrentSpec("lstm", 1, 12, _TOKENS, _SYMBOLS, convolutions=(Convolution(8, 4),)),
        "conv1d": RecurrentSpec("gru", 0, 12, _VALUES, _ACTIVITIES, convolutions=(Convolution(8, 3),)),
        "conv2d-lstm": RecurrentSpec(
            "lstm",
            1,
            12,
            FrameInput(10, 12),
            _ANSWERS,
            frame_convolutions=(FrameConvolution(4, pool=2), FrameConvolution(6, stride=2)),
        ),
        "conv2d-gru-colour": RecurrentSpec(
            "gru",
            1,
            12,
            FrameInput(8, 8, channels=3),
            _ANSWERS,
            frame_convolutions=(FrameConvolution(4, 5, 2), FrameConvolution(6), FrameConvolution(6, pool=2)),
        ),
        "frames-gru": RecurrentSpec("gru", 1, 12, FrameInput(4, 4), _ANSWERS),
        "attention-lstm": RecurrentSpec("lstm", 1, 12, _TOKENS, _SYMBOLS, attention=Attention(6)),
        "attention-gru-forecast": RecurrentSpec("gru", 2, 12, _VALUES, _FORECAST, attention=Attention(16)),
        "conv1d-attention-gru": RecurrentSpec(
            "gru",
            2,
            12,
            _VALUES,
            _PLAIN,
            residual=True,
            learned_state=True,
            convolutions=(Convolution(8, 3),),
            attention=Attention(5),
        ),
    }
