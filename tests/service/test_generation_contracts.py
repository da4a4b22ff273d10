"""Generation where the contract is unusual: ports that are not text's, symbols that are missing or have two duties."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from architectures import example, example_folder
from google.protobuf import json_format
from graphs import METADATA_KEY
from loopback import Loopback, configure, detail_of, serve, write_model
from onnx import TensorProto, helper

from eddy.service import generation
from eddy.service.contract import read_contract
from eddy.service.errors import ModelError, Reason
from eddy.v1 import contract_pb2, generation_pb2

LETTERS = example("lstm")
Change = Callable[[contract_pb2.ModelContract], None]


def build(change: Change, **inputs: int) -> onnx.ModelProto:
    """A language model with further inputs [B], which it does not look at, and a contract that was changed."""
    model = onnx.load(example_folder("lstm") / "model.onnx")
    [entry] = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    contract = json_format.Parse(entry.value, contract_pb2.ModelContract())
    contract.name, contract.task = "letters", contract_pb2.TASK_NEXT_TOKEN
    contract.ClearField("vocabulary")
    change(contract)
    entry.value = json_format.MessageToJson(contract, preserving_proto_field_name=True)
    model.graph.input.extend(helper.make_tensor_value_info(name, dtype, ["B"]) for name, dtype in inputs.items())
    return model


async def generate(running: Loopback, **fields: object) -> list[generation_pb2.GenerateResponse]:
    """All events of one call on a new session."""
    request = generation_pb2.GenerateRequest(
        open=generation_pb2.NewSession(model="letters"), **({"max_tokens": 5} | fields)
    )
    call = running.channel.unary_stream(
        "/eddy.v1.GenerationService/Generate", None, generation_pb2.GenerateResponse.FromString
    )
    return [response async for response in call(request.SerializeToString())]


def run(model: onnx.ModelProto, tmp_path: Path, **fields: object) -> list[generation_pb2.GenerateResponse]:
    """One call on a server that serves `model`."""
    write_model(tmp_path, "letters", model=model)

    async def scenario() -> list[generation_pb2.GenerateResponse]:
        async with serve(configure(tmp_path)) as running:
            return await generate(running, **fields)

    return asyncio.run(scenario())


def ids(events: list[generation_pb2.GenerateResponse]) -> list[int]:
    """The tokens told."""
    return [token.id for event in events for token in event.tokens.tokens]


PROMPT = generation_pb2.TokenIds(ids=[1, 2, 3])
GREEDY = generation_pb2.Sampling(temperature=0)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_model_that_is_told_of_lengths_generates(tmp_path: Path, num_beams: int) -> None:
    """The ports `length` and `flush` are fed in generation as in steps; they change nothing here."""

    def change(contract: contract_pb2.ModelContract) -> None:
        contract.ports.length, contract.ports.flush = "length", "flush"

    fields = {"tokens": PROMPT, "num_beams": num_beams} | ({"sampling": GREEDY} if num_beams == 1 else {})
    plain = run(build(lambda _: None), tmp_path / "plain", **fields)
    told = run(build(change, length=TensorProto.INT64, flush=TensorProto.BOOL), tmp_path / "told", **fields)
    assert len(ids(plain)) == 5 and ids(told) == ids(plain)


@pytest.mark.parametrize("unit", ["", "character", "piece"])
def test_ends_without_symbols(tmp_path: Path, unit: str) -> None:
    """A vocabulary may say which ids begin and end, and have no symbols: token ids are all there is."""

    def change(contract: contract_pb2.ModelContract) -> None:
        contract.vocabulary.start_id, contract.vocabulary.end_id, contract.vocabulary.unit = 0, 1, unit

    events = run(build(change), tmp_path, sampling=GREEDY)
    assert events[-1].finished.num_tokens == len(ids(events))
    assert not {0, 1} & set(ids(events))


def test_a_symbol_that_begins_and_ends(tmp_path: Path) -> None:
    """One id may be both, as many translators have it: it is read first, and drawing it is the end."""
    first = ids(run(build(lambda _: None), tmp_path / "plain", tokens=PROMPT, sampling=GREEDY))[0]

    def change(contract: contract_pb2.ModelContract) -> None:
        contract.vocabulary.start_id = contract.vocabulary.end_id = first

    ended = generation_pb2.GenerationFinished.REASON_END
    beams = run(build(change), tmp_path / "beams", tokens=PROMPT, num_beams=2, length_penalty=0.0)
    assert beams[-1].finished.reason == ended and not ids(beams)
    greedy = run(build(change), tmp_path / "greedy", tokens=PROMPT, sampling=GREEDY)
    assert greedy[-1].finished.reason == ended and not ids(greedy)


def test_a_prompt_is_fed_in_pieces_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams' prompts, too: the scores of every step of a piece are computed, and only the last are used."""
    vocabulary = LETTERS.outputs[0].shape[0]
    monkeypatch.setattr(generation, "_MAX_PROMPT_CHUNK_BYTES", 7 * 4 * vocabulary)
    write_model(tmp_path, "letters", model=build(lambda _: None))
    prompt = generation_pb2.TokenIds(ids=[1] * 35)

    async def scenario() -> list[int]:
        ticks = []
        async with serve(configure(tmp_path)) as running:
            scheduler = running.host.catalog.served[0].scheduler
            for num_beams in (1, 2):
                before = scheduler.num_ticks
                await generate(running, tokens=prompt, num_beams=num_beams, max_tokens=1)
                ticks.append(scheduler.num_ticks - before)
        return ticks

    one, several = asyncio.run(scenario())
    assert several >= 5 and one >= 5


def test_outputs_of_beams_are_bounded(tmp_path: Path) -> None:
    """What is kept for every token of every beam has a limit: too many tokens are refused, unsaid they are fewer."""
    write_model(tmp_path, "letters", model=build(lambda _: None))
    name = LETTERS.outputs[0].name

    async def scenario() -> None:
        async with serve(configure(tmp_path, server={"max_message_bytes": 1 << 10})) as running:
            row = 4 * LETTERS.outputs[0].shape[0]
            most = 4 * (1 << 10) // (2 * row)
            events = await generate(running, tokens=PROMPT, num_beams=2, outputs=[name], max_tokens=0)
            assert len(ids(events)) == most
            events = await generate(running, tokens=PROMPT, num_beams=2, outputs=[name], max_tokens=most)
            assert len(ids(events)) == most
            with pytest.raises(Exception, match="max_tokens") as caught:
                await generate(running, tokens=PROMPT, num_beams=2, outputs=[name], max_tokens=most + 1)
            assert detail_of(caught.value).reason == Reason.OUT_OF_RANGE  # type: ignore[arg-type]

    asyncio.run(scenario())


# Contracts that contradict themselves


def _twice(contract: contract_pb2.ModelContract) -> None:
    contract.inputs.add().CopyFrom(contract.inputs[0])


def _length_is_an_input(contract: contract_pb2.ModelContract) -> None:
    contract.ports.length = contract.inputs[0].name


def _emitted_is_an_output(contract: contract_pb2.ModelContract) -> None:
    contract.ports.length, contract.ports.flush = "length", "flush"
    contract.ports.emitted = contract.outputs[0].name


def _next_is_an_output(contract: contract_pb2.ModelContract) -> None:
    contract.states.add(name="other", next_name=contract.states[0].next_name, dtype=1, shape=[1])


def _source_symbols(contract: contract_pb2.ModelContract) -> None:
    contract.source_vocabulary.symbols.extend("ab")
    contract.source_vocabulary.unknown_id = 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_twice, "twice"),
        (_length_is_an_input, "twice"),
        (_emitted_is_an_output, "twice"),
        (_next_is_an_output, "twice"),
        (_source_symbols, "unknown_id is 2"),
    ],
)
def test_contracts_that_contradict_themselves(change: Change, problem: str) -> None:
    """A tensor with two duties, and symbols that are not there, are refused with their names."""
    with pytest.raises(ModelError, match=problem):
        read_contract(build(change))
    assert read_contract(build(lambda _: None)).name == "letters"
