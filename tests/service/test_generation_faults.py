"""One generation on a host, without the wire: a fault of ours in the middle of it."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from loopback import configure, serve, until

from eddy.service.errors import Reason, ServerBug
from eddy.service.generation import Generation, Plan
from eddy.service.sampling import Sampling
from eddy.service.sessions import NO_STREAM

MODELS = Path(__file__).resolve().parent.parent.parent / "models"


def test_a_fault_in_one_generation_ends_that_one(caplog: pytest.LogCaptureFixture) -> None:
    """It ends with INTERNAL and a traceback in the log; one that shares its ticks goes on to its end."""

    async def check() -> None:
        async with serve(configure(MODELS)) as running:
            host = running.host
            model = host.catalog.ready("text-rnn", "")
            rows = host.opening.open("text-rnn", "", 2, 1, 0.0, NO_STREAM).rows
            told: list[int] = []

            def break_at_the_third(token: int) -> bool:
                told.append(token)
                if len(told) == 3:
                    raise IndexError(token)
                return False

            bad, good = (
                Generation(host, model, int(row), Plan((1, 2), Sampling(7), 20), is_last, lambda: None)
                for row, is_last in zip(rows, (break_at_the_third, lambda _: False), strict=True)
            )
            bad.start()
            good.start()
            await until(lambda: bad.failure is not None and good.finish is not None)
            assert isinstance(bad.failure, ServerBug)
            assert bad.failure.reason is Reason.INTERNAL
            assert [token.id for token in good.take()][:3] == told
            assert good.num_tokens == 20
            host.endings.close(np.array(rows), lambda _: None)
            await until(lambda: host.is_idle)

    asyncio.run(check())
    assert "IndexError" in caplog.text
