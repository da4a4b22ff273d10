"""Calls that are under way while their model is replaced: generations, beams and whole sequences.

The model of a call is held in its engine until another has taken its place, and is freed only after the call.
"""

import asyncio
import shutil
import threading
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import PlainGraph, family, history_in
from loopback import Loopback, array, configure, serve, until, write_model
from simulation import assert_same
from test_generate import MODELS, SAMPLING, Written, generate
from test_infer import request

from eddy.service.engine import Engine
from eddy.v1 import generation_pb2, inference_pb2


class Held(Engine):
    """An engine whose third run waits until it is let go."""

    num_runs = 0
    began = threading.Event()
    may_go_on = threading.Event()

    def _hold(self) -> None:
        self.num_runs += 1
        if self.num_runs == 3:
            self.began.set()
            assert self.may_go_on.wait(30)

    def run(self, *arguments: Any) -> list[bytes]:
        """As ever, later."""
        self._hold()
        return super().run(*arguments)

    def run_whole(self, *arguments: Any) -> list[bytes]:
        """As ever, later."""
        self._hold()
        return super().run_whole(*arguments)


def _replace(root: Path, path: Path) -> None:
    """The file `path` in place of the one that `root` has."""
    folder = root / "model" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / ".new")
    (folder / ".new").rename(folder / "model.onnx")


def _run(root: Path, path: Path, scenario: Callable[[Loopback], Awaitable[Any]], after: Callable[..., Any]) -> Any:
    """Runs `scenario`, a call or several, which must take three runs; `path` takes its model's place at the third.

    `after` is another call, of the new model.
    """

    async def run() -> tuple[Any, Any]:
        config = configure(root, server={"inline_tick_seconds": 0.0}, repository={"poll_seconds": 0.0})
        Held.began.clear()
        Held.may_go_on.clear()
        async with serve(config) as loopback:
            host = loopback.host
            before = weakref.ref(host.catalog.ready("model", ""))
            before().engine.__class__ = Held  # type: ignore[union-attr]
            calling = asyncio.ensure_future(scenario(loopback))
            try:
                assert await asyncio.to_thread(Held.began.wait, 30)
                _replace(root, path)
                for _ in range(2):
                    await host.watcher.poll()
                assert host.catalog.ready("model", "") is not before()
                assert len(host.catalog.served) == 2, "the model was freed while it ran"
                # One thread runs for all models: it waits behind the run that is held.
                coming = asyncio.ensure_future(after(loopback))
            finally:
                Held.may_go_on.set()
            held, given = await calling, await coming
            await until(lambda: host.is_idle and not host.table.num_sessions)
            host.release_models()
            assert before() is None
            return held, given

    return asyncio.run(run())


@pytest.mark.parametrize("num_beams", [0, 4])
def test_a_text_that_is_being_generated(tmp_path: Path, num_beams: int) -> None:
    """It is finished by the model that began it, with all of its beams; the next text is of the new one."""
    old, new = (MODELS / name / "1" / "model.onnx" for name in ("text-lstm", "text-gru"))
    _replace(tmp_path, old)
    options: dict[str, Any] = {"text": b"The class ", "max_tokens": 20}
    options |= {"num_beams": num_beams} if num_beams else {"sampling": SAMPLING}

    async def call(loopback: Loopback, name: str = "model") -> Written:
        return await generate(loopback, open=generation_pb2.NewSession(model=name), **options)

    async def alone() -> list[Written]:
        async with serve(configure(MODELS)) as loopback:
            return [await call(loopback, name) for name in ("text-lstm", "text-gru")]

    held, given = _run(tmp_path, new, call, call)
    expected = asyncio.run(alone())
    assert [held.ids, given.ids] == [each.ids for each in expected]
    assert held.ids != given.ids


@pytest.mark.parametrize("name", ["pooled", "lstm"])
def test_whole_sequences_that_are_being_inferred(tmp_path: Path, name: str) -> None:
    """Sequences of several lengths, the last after the change: all by the model that the call began with."""
    spec = family(name)
    generator = np.random.default_rng(4)
    sequences = [spec.example(generator, length) for length in (3, 5, 7, 9)]
    path = write_model(tmp_path / "one", name)
    _replace(tmp_path / "two", path)
    # Another model for the same inputs.
    other = write_model(tmp_path / "other", "history", model=history_in(7).model())

    async def call(loopback: Loopback) -> inference_pb2.InferResponse:
        message = request(spec, sequences, model="model")
        response: inference_pb2.InferResponse = await loopback.unary(
            "InferenceService/Infer", message, inference_pb2.InferResponse
        )
        return response

    async def another(loopback: Loopback) -> inference_pb2.InferResponse:
        message = request(family("history"), [[np.array([1, 2, 3])]], model="model")
        response: inference_pb2.InferResponse = await loopback.unary(
            "InferenceService/Infer", message, inference_pb2.InferResponse
        )
        return response

    held, given = _run(tmp_path / "two", other, call, another)
    assert held.package_digest != given.package_digest
    assert array(given.outputs[0]).tolist() == [1, 9, 66]
    whole = [PlainGraph(spec).whole(sequence)[0] for sequence in sequences]
    for place, output in enumerate(held.outputs):
        assert_same(array(output), np.concatenate([each[place] for each in whole]), spec.tolerance)
