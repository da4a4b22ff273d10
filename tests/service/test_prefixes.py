"""Known prompts: a text that begins from a kept state is, bit for bit, the one that was fed from its start."""

import asyncio
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import json_format
from graphs import METADATA_KEY
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import PATIENCE_SECONDS, Loopback, configure, serve, until
from onnx import numpy_helper

from eddy.service.engine import Engine
from eddy.service.prefixes import BLOCK_TOKENS, PrefixCache
from eddy.service.stats import PrefixStats
from eddy.v1 import contract_pb2, generation_pb2

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two text models with one vocabulary."""
    root = tmp_path_factory.mktemp("models")
    for name in ("text-gru", "text-lstm"):
        shutil.copytree(MODELS / name, root / name)
    return root


async def _write(
    running: Loopback, model: str, prompt: Sequence[int], version: str = "", **fields: Any
) -> tuple[generation_pb2.GenerationStarted, list[tuple[int, float]], generation_pb2.GenerationFinished]:
    request = generation_pb2.GenerateRequest(
        open=generation_pb2.NewSession(model=model, version=version),
        tokens=generation_pb2.TokenIds(ids=prompt),
        sampling=generation_pb2.Sampling(seed=11),
        max_tokens=6,
        log_probabilities=True,
        **fields,
    )
    call = running.channel.unary_stream(
        "/eddy.v1.GenerationService/Generate", None, generation_pb2.GenerateResponse.FromString
    )
    events = [event async for event in call(request.SerializeToString())]
    tokens = [(token.id, token.log_probability) for event in events for token in event.tokens.tokens]
    return events[0].started, tokens, events[-1].finished


def _prompts(generator: np.random.Generator, count: int) -> Iterator[list[int]]:
    """Prompts of random lengths, most of which begin as others do."""
    known: list[list[int]] = [[1]]
    for _ in range(count):
        stem = known[int(generator.integers(len(known)))]
        cut = int(generator.integers(0, len(stem) + 1))
        known.append(stem[:cut] + generator.integers(0, 60, int(generator.integers(1, 180))).tolist())
        yield known[-1]


@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 16), max_bytes=st.sampled_from([20_000, 200_000, 1 << 24]), is_inline=st.booleans())
def test_texts_are_the_same(models: Path, seed: int, max_bytes: int, *, is_inline: bool) -> None:
    """Tokens and log-probabilities, of prompts that share beginnings, several at once, while entries come and go."""

    async def texts(cache_bytes: int) -> tuple[list[Any], int]:
        server = {"inline_tick_seconds": 1.0 if is_inline else 0.0}
        config = configure(models, server=server, state={"prefix_cache_bytes": cache_bytes})
        generator, found, num_cached = np.random.default_rng(seed), [], 0
        async with serve(config) as running:
            for _ in range(3):
                wanted = [(name, prompt) for prompt in _prompts(generator, 5) for name in ("text-gru", "text-lstm")]
                wanted += wanted[:4]
                # One after the other, so that later ones find what earlier ones left, and then all at once.
                first = [await _write(running, *each) for each in wanted]
                again = await asyncio.gather(*(_write(running, *each) for each in wanted))
                for started, tokens, finished in (*first, *again):
                    assert started.position == 0 and started.num_cached_tokens <= started.num_prompt_tokens
                    num_cached += started.num_cached_tokens
                    found.append((tokens, finished.next_position, started.num_prompt_tokens))
        return found, num_cached

    without, none = asyncio.run(texts(0))
    with_cache, some = asyncio.run(texts(max_bytes))
    assert none == 0 and some > 0
    assert with_cache == without


def test_what_is_kept_belongs_to_one_model(models: Path) -> None:
    """Whole prompts and whole blocks are found, by their very model and by sessions that need no more."""

    async def scenario() -> None:
        prompt = np.random.default_rng(3).integers(0, 60, 150).tolist()
        async with serve(configure(models, state={"prefix_cache_bytes": 1 << 20})) as running:
            cached = [(await _write(running, "text-gru", prompt))[0].num_cached_tokens for _ in range(2)]
            assert cached == [0, 150]
            assert (await _write(running, "text-lstm", prompt))[0].num_cached_tokens == 0
            other = [*prompt[:140], 7, *prompt[141:]]
            assert (await _write(running, "text-gru", other))[0].num_cached_tokens == 2 * BLOCK_TOKENS
            assert (await _write(running, "text-gru", [9, *prompt[1:]]))[0].num_cached_tokens == 0
            # One that stays open has the reply to its last chunk.
            kept = await _write(running, "text-gru", prompt, keep_session=True)
            assert kept[0].num_cached_tokens == 2 * BLOCK_TOKENS
            row = running.host.table.row_of_id(kept[0].session_id)
            assert not running.host.table.has_own_start[row] and kept[2].next_position == 156
            served = running.host.catalog.find("text-gru", "").model
            assert served is not None and running.host.prefixes.known(served) is not None
            running.host.prefixes.forget(served)
            assert running.host.prefixes.known(served) is None
            assert (await _write(running, "text-gru", prompt))[0].num_cached_tokens == 0

    asyncio.run(scenario())


def _put_heir(model: Path) -> None:
    """A version 2 beside version 1 in the folder, with other weights, which adopts its sessions."""
    built = onnx.load(model / "1" / "model.onnx")
    [entry] = [entry for entry in built.metadata_props if entry.key == METADATA_KEY]
    contract = json_format.Parse(entry.value, contract_pb2.ModelContract())
    contract.adopts.append("1")
    entry.value = json_format.MessageToJson(contract, preserving_proto_field_name=True)
    for weights in built.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.ndim == 2 and values.dtype == np.float32:
            weights.CopyFrom(numpy_helper.from_array(values * np.float32(1.25), weights.name))
    (model / "2").mkdir()
    (model / "2" / "model.onnx").write_bytes(built.SerializeToString())


class Paused(Engine):
    """An engine that stops once, on its thread: before a run, or before it reads states, after so many of them."""

    stops_before: str
    num_before: int
    has_stopped: threading.Event
    may_go_on: threading.Event

    def _stop(self, what: str) -> None:
        if what == self.stops_before:
            self.num_before -= 1
            if self.num_before == -1:
                self.has_stopped.set()
                assert self.may_go_on.wait(PATIENCE_SECONDS)

    def run(self, *arguments: Any) -> list[bytes]:
        """As `Engine.run`."""
        self._stop("run")
        return super().run(*arguments)

    def read_states(self, slots: np.ndarray, home_slots: np.ndarray | None = None) -> list[np.ndarray]:
        """As `Engine.read_states`."""
        self._stop("read")
        return super().read_states(slots, home_slots)


@pytest.mark.parametrize("stops_before", ["run", "read"])
@pytest.mark.parametrize("num_before", [0, 1, 3])
def test_a_prompt_that_two_models_fed(tmp_path: Path, stops_before: str, num_before: int) -> None:
    """What another model has fed a part of is kept for neither of them: texts are those of a server that keeps none."""
    root, heir, later = tmp_path / "models", tmp_path / "models/text-gru/2", tmp_path / "later"
    shutil.copytree(MODELS / "text-gru", heir.parent)
    _put_heir(heir.parent)
    prompt = np.random.default_rng(5).integers(0, 60, 5 * BLOCK_TOKENS + 9).tolist()

    async def texts(running: Loopback) -> list[Any]:
        """Of both versions, fed, and from what that left."""
        return [(await _write(running, "text-gru", prompt, version))[1:] for version in ("1", "2") * 2]

    async def alone() -> list[Any]:
        async with serve(configure(root, state={"prefix_cache_bytes": 0})) as running:
            return await texts(running)

    async def crossed() -> list[Any]:
        server, repository = {"inline_tick_seconds": 0.0}, {"poll_seconds": 0.0}
        config = configure(root, server=server, repository=repository, state={"prefix_cache_bytes": 1 << 24})
        heir.rename(later)
        async with serve(config) as running:
            old: Any = running.host.catalog.ready("text-gru", "1")
            engine = old.engine
            engine.__class__, engine.stops_before, engine.num_before = Paused, stops_before, num_before
            engine.has_stopped, engine.may_go_on = threading.Event(), threading.Event()
            crossing = asyncio.create_task(_write(running, "text-gru", prompt))
            await until(engine.has_stopped.is_set)
            later.rename(heir)
            await running.host.watcher.poll()
            await running.host.watcher.poll()
            engine.may_go_on.set()
            assert (await crossing)[2].next_position == len(prompt) + 6
            assert running.host.catalog.ready("text-gru", "2").stats.num_adopted_sessions == 1
            return await texts(running)

    assert asyncio.run(crossed()) == asyncio.run(alone())


def test_the_least_recently_used_go_first() -> None:
    """Within the bytes given; what is found counts as used, and one that is too large alone is not kept."""
    states = {"h": np.zeros(100, np.float32)}
    cache = PrefixCache(3 * 1000, PrefixStats())
    for first in range(3):
        cache.add([first], states, (b"x" * 50,))
    assert cache.find([0], takes_all=True) is not None
    cache.add([3], states, (b"x" * 50,))
    assert [cache.find([first], takes_all=True) is not None for first in range(4)] == [True, False, True, True]
    assert cache.held_bytes <= cache.max_bytes and cache.stats.num_evictions == 1
    cache.add([4], {"h": np.zeros(1000, np.float32)}, ())
    assert cache.find([4], takes_all=True) is None and cache.stats.num_hits == 4
