"""Generation: a character model writes on from a prompt, for its card.

Owns: the sampling loop. Must not know files or ONNX.
"""

import numpy as np
import torch

from eddy.training.data import Vocabulary
from eddy.training.model import RecurrentModel


@torch.no_grad()
def continue_text(
    model: RecurrentModel, vocabulary: Vocabulary, prompt: str, seed: int, length: int = 400, temperature: float = 0.8
) -> str:
    """Sample `length` characters after a prompt of at least one; the same seed gives the same text.

    temperature: the logits are divided by it; below 1 the likelier symbols gain. The unknown symbol is never drawn.
    """
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(vocabulary.encode(prompt))[None]
    logits, state = model(tokens, model.initial_state(1))
    drawn: list[int] = []
    for _ in range(length):
        scaled = logits[0, -1].double().numpy() / temperature
        shares = np.exp(scaled - scaled.max())
        shares[0] = 0.0
        drawn.append(int(rng.choice(len(shares), p=shares / shares.sum())))
        logits, state = model(torch.tensor([drawn[-1:]]), state)
    return vocabulary.decode(drawn)
