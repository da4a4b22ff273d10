"""Translation through a real server: what is read first, the end symbol, attention, and beams.

The reference runs every sequence whole through the plain graph, so it knows nothing of slots or of beams that change
places.
"""

import asyncio
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from architectures import example, example_folder
from google.protobuf import json_format
from graphs import METADATA_KEY, Family, Start
from loopback import Loopback, array, configure, detail_of, serve, tensor, until, write_model
from schedule import plain_graph

from eddy.service.sampling import log_probabilities
from eddy.v1 import contract_pb2, errors_pb2, generation_pb2, inference_pb2

NAME = "translation-gru"
MODEL: Family = example(NAME)
SPACE = "\u2581"
# 17 symbols; the untrained model likes some more than others, and the end must be drawn now and then.
UNKNOWN, START, END = 0, 1, 2
SYMBOLS = ("\ufffd", "\u2402", "\u2403", SPACE, *"abcdef", "ab", "abc", SPACE + "c", "de", "ef", "f" + SPACE, "cd")
SOURCES = ("a", "abcdef", "ab cd ef", "fed cba", "abc c", "cdcdcdcdcdcd")
Generated = generation_pb2.GenerateResponse


@dataclass
class Result:
    """What a call gave."""

    ids: list[int] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)
    looks: list[np.ndarray] = field(default_factory=list)
    text: str = ""
    finished: generation_pb2.GenerationFinished = field(default_factory=generation_pb2.GenerationFinished)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained translator with two vocabularies of pieces."""
    root = tmp_path_factory.mktemp("models")
    write_translator(root, "translator")
    return root


def write_translator(root: Path, name: str) -> None:
    """Puts the model with the vocabularies into a repository."""
    model = onnx.load(example_folder(NAME) / "model.onnx")
    [entry] = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    contract = json_format.Parse(entry.value, contract_pb2.ModelContract())
    contract.name = name
    for vocabulary in (contract.vocabulary, contract.source_vocabulary):
        vocabulary.symbols[:] = SYMBOLS
        vocabulary.unit, vocabulary.unknown_id = "piece", UNKNOWN
        vocabulary.start_id, vocabulary.end_id = START, END
    entry.value = json_format.MessageToJson(contract, preserving_proto_field_name=True)
    path = write_model(root, name, model=model)
    shutil.copy(example_folder(NAME) / "prime.onnx", path.parent)


async def translate(running: Loopback, source: str = "", model: str = "translator", **fields: Any) -> Result:
    """One call to its end."""
    opening = fields.pop("open", None) or generation_pb2.NewSession(model=model, source_text=source.encode())
    request = generation_pb2.GenerateRequest(open=opening, **({"max_tokens": 12} | fields))
    method = running.channel.unary_stream("/eddy.v1.GenerationService/Generate", None, Generated.FromString)
    result = Result()
    async for response in method(request.SerializeToString()):
        result.text += response.tokens.text
        for token in response.tokens.tokens:
            result.ids.append(token.id)
            result.logs.append(token.log_probability)
            result.looks += [array(output)[0, 0] for output in token.outputs]
        if response.HasField("finished"):
            result.finished = response.finished
    return result


async def refusal(running: Loopback, **fields: Any) -> tuple[str, str]:
    """Reason and field of a call that must be refused, and leave no session."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await translate(running, **fields)
    assert running.host.table.num_sessions == 0
    detail = detail_of(caught.value)
    return errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_"), detail.field


def encode(text: str) -> list[int]:
    """The longest symbol at every place."""
    rest, ids = text.replace(" ", SPACE), []
    while rest:
        longest = max((s for s in SYMBOLS[3:] if rest.startswith(s)), key=len, default="")
        ids.append(SYMBOLS.index(longest) if longest else UNKNOWN)
        rest = rest[max(1, len(longest)) :]
    return ids


def run(source: str, target: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities [T, V] and attention [T, S] after the start and each symbol of `target`."""
    ids = np.array(encode(source))
    outputs, _ = plain_graph(MODEL).whole([np.array([START, *target])], Start([ids], len(ids)))
    return np.stack([log_probabilities(row) for row in outputs[0]]), outputs[1]


def search_beams(source: str, width: int, most: int, penalty: float) -> list[tuple[tuple[int, ...], float]]:
    """Finished targets and the log-probabilities of all their symbols, best first."""
    beams: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    done: list[tuple[tuple[int, ...], float]] = []
    while True:
        grown = []
        for target, total in beams:
            logs = run(source, list(target))[0][-1]
            grown += [((*target, token), total + logs[token]) for token in range(len(logs)) if token not in (0, 1)]
        grown.sort(key=lambda found: -found[1])
        beams = []
        for target, total in grown[: 2 * width]:
            if target[-1] == END:
                done.append((target[:-1], total))
            elif len(beams) < width:
                beams.append((target, total))
        if len(done) >= width or not beams or len(beams[0][0]) >= most:
            break
    ended = 1 if done else 0
    return sorted(done or beams, key=lambda found: -found[1] / (len(found[0]) + ended) ** penalty)


def serve_and(repository: Path, scenario: Any) -> Any:
    """Runs a scenario on a server."""

    async def whole() -> Any:
        async with serve(configure(repository)) as running:
            found = await scenario(running)
            assert running.host.table.num_sessions == 0
            return found

    return asyncio.run(whole())


def test_the_most_likely_symbols_until_the_end(repository: Path) -> None:
    """Source text is read, the most likely symbols follow one by one, and the end symbol is no part of the text.

    So it is without being asked for.
    """
    greedy = generation_pb2.Sampling(temperature=0)

    async def scenario(running: Loopback) -> list[Result]:
        calls = [
            translate(running, source, log_probabilities=True, **({"sampling": greedy} if number % 2 else {}))
            for number, source in enumerate(SOURCES)
        ]
        return list(await asyncio.gather(*calls))

    reasons = set()
    for source, result in zip(SOURCES, serve_and(repository, scenario), strict=True):
        wanted: list[int] = []
        for _ in range(12):
            logs = run(source, wanted)[0][-1].copy()
            logs[[UNKNOWN, START]] = -np.inf
            token = int(logs.argmax())
            if token == END:
                break
            wanted.append(token)
        assert result.ids == wanted
        assert result.text == "".join(SYMBOLS[number] for number in wanted).replace(SPACE, " ")
        logs = run(source, wanted)[0]
        assert result.logs == pytest.approx([logs[at, token] for at, token in enumerate(wanted)], abs=1e-12)
        ended = generation_pb2.GenerationFinished.REASON_END
        assert (result.finished.reason == ended) == (len(wanted) < 12)
        assert result.finished.num_tokens == len(wanted)
        reasons.add(result.finished.reason)
    assert reasons, "some end, some are cut: whichever, both are checked above"


def test_attention_on_request(repository: Path) -> None:
    """Beside each token come the weights of the step that it was drawn from; unasked for, nothing does."""

    async def scenario(running: Loopback) -> tuple[Result, Result]:
        asked = await translate(running, "ab cd ef", outputs=["attention"], sampling=generation_pb2.Sampling(seed=4))
        return asked, await translate(running, "ab cd ef", sampling=generation_pb2.Sampling(seed=4))

    asked, unasked = serve_and(repository, scenario)
    assert asked.ids == unasked.ids and asked.ids and not unasked.looks
    looks = run("ab cd ef", asked.ids)[1]
    np.testing.assert_array_equal(np.stack(asked.looks), looks[: len(asked.ids)])
    assert np.stack(asked.looks).sum(axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("width", "penalty"), [(2, 1.0), (4, 1.0), (3, 0.0), (5, 2.0)])
def test_beams_are_those_of_a_plain_search(repository: Path, width: int, penalty: float) -> None:
    """Searches that share a server, and ticks with other sessions, find what each would find alone."""

    async def scenario(running: Loopback) -> list[Result]:
        options = {"num_beams": width, "length_penalty": penalty, "log_probabilities": True, "outputs": ["attention"]}
        calls = [translate(running, source, **options) for source in SOURCES]
        noise = [translate(running, source) for source in SOURCES]
        return list((await asyncio.gather(*calls, *noise))[: len(SOURCES)])

    for source, result in zip(SOURCES, serve_and(repository, scenario), strict=True):
        wanted = search_beams(source, width, 12, penalty)
        found = [(tuple(each.ids), each.log_probability) for each in result.finished.hypotheses]
        assert [ids for ids, _ in found] == [ids for ids, _ in wanted]
        assert [log for _, log in found] == pytest.approx([log for _, log in wanted], abs=1e-9)
        best = list(wanted[0][0])
        assert result.ids == best
        assert result.text == result.finished.hypotheses[0].text
        logs, looks = run(source, best)
        assert result.logs == pytest.approx([logs[at, token] for at, token in enumerate(best)], abs=1e-9)
        if best:
            np.testing.assert_array_equal(np.stack(result.looks), looks[: len(best)])


def test_beams_of_a_language_model() -> None:
    """A model without an end symbol is searched up to the limit, behind a prompt of several chunks' length."""
    models = Path(__file__).resolve().parents[2] / "models"
    prompt = b"The class statement defines a class. " * 40

    async def scenario(running: Loopback) -> tuple[Result, Result]:
        opening = generation_pb2.NewSession(model="text-rnn")
        beams = await translate(running, open=opening, text=prompt, num_beams=4, max_tokens=9, log_probabilities=True)
        greedy = generation_pb2.Sampling(temperature=0)
        plain = await translate(
            running, open=opening, text=prompt, max_tokens=9, log_probabilities=True, sampling=greedy
        )
        return beams, plain

    async def whole() -> tuple[Result, Result]:
        async with serve(configure(models)) as running:
            return await scenario(running)

    beams, plain = asyncio.run(whole())
    assert len(beams.ids) == 9 and len(beams.finished.hypotheses) == 4
    assert beams.finished.reason == generation_pb2.GenerationFinished.REASON_MAX_TOKENS
    totals = [each.log_probability for each in beams.finished.hypotheses]
    assert totals == sorted(totals, reverse=True)
    assert sum(beams.logs) == pytest.approx(totals[0], abs=1e-6)
    assert totals[0] >= sum(plain.logs) - 1e-9, "four beams contain the greedy choice's likelihood"


def test_a_cancelled_search_leaves_nothing(repository: Path) -> None:
    """The sessions of all beams end when their client hangs up."""

    async def scenario(running: Loopback) -> None:
        opening = generation_pb2.NewSession(model="translator", source_text=b"abcdef")
        request = generation_pb2.GenerateRequest(open=opening, num_beams=8, max_tokens=4000)
        method = running.channel.unary_stream("/eddy.v1.GenerationService/Generate", None, Generated.FromString)
        call = method(request.SerializeToString())
        await call.read()
        call.cancel()
        await until(lambda: running.host.table.num_sessions == 0 and running.host.is_idle)

    serve_and(repository, scenario)


@pytest.mark.parametrize(
    ("fields", "reason", "where"),
    [
        ({"source": ""}, "OUT_OF_RANGE", "open.source_text"),
        ({"source": "f" * 10}, "OUT_OF_RANGE", "open.source_text"),
        ({"open": generation_pb2.NewSession(model="translator")}, "MISSING_FIELD", "open.prime"),
        ({"source": "a", "outputs": ["look"]}, "OUT_OF_RANGE", "outputs"),
        ({"source": "a", "num_beams": 17}, "OUT_OF_RANGE", "num_beams"),
        ({"source": "a", "num_beams": 2, "stop": ["a"]}, "OUT_OF_RANGE", "stop"),
        ({"source": "a", "num_beams": 2, "keep_session": True}, "OUT_OF_RANGE", "keep_session"),
        ({"source": "a", "num_beams": 2, "sampling": {"seed": 1}}, "OUT_OF_RANGE", "sampling"),
        ({"source": "a", "num_beams": 2, "num_alternatives": 3}, "OUT_OF_RANGE", "num_alternatives"),
        ({"source": "a", "num_beams": 2, "length_penalty": float("nan")}, "OUT_OF_RANGE", "length_penalty"),
    ],
)
def test_what_is_refused(repository: Path, fields: dict[str, Any], reason: str, where: str) -> None:
    """Each is refused by its field, before anything is opened."""
    if "sampling" in fields:
        fields = fields | {"sampling": generation_pb2.Sampling(**fields["sampling"])}

    async def scenario(running: Loopback) -> tuple[str, str]:
        return await refusal(running, **fields)

    assert serve_and(repository, scenario) == (reason, where)


PRIME = inference_pb2.Prime(inputs=[tensor("source", np.array([[3, 4, 5]]))], lengths=np.uint32(3).tobytes())


def _changed(**fields: Any) -> inference_pb2.Prime:
    changed = inference_pb2.Prime()
    changed.CopyFrom(PRIME)
    for name, value in fields.items():
        if name == "lengths":
            changed.lengths = value
        else:
            changed.ClearField("inputs")
            changed.inputs.append(value)
    return changed


@pytest.mark.parametrize(
    ("prime", "reason", "where"),
    [
        (inference_pb2.Prime(), "MISSING_FIELD", "open.prime"),
        (_changed(lengths=b"\3"), "INVALID_BYTE_LENGTH", "open.prime.lengths"),
        (_changed(lengths=np.uint32(4).tobytes()), "OUT_OF_RANGE", "open.prime.lengths[0]"),
        (_changed(lengths=np.uint32(0).tobytes()), "OUT_OF_RANGE", "open.prime.lengths[0]"),
        (_changed(tensor=tensor("sauce", np.array([[3]]))), "UNKNOWN_INPUT", "open.prime.inputs"),
        (_changed(tensor=tensor("source", np.array([[3.0]]))), "INVALID_DTYPE", "open.prime.inputs[source].dtype"),
        (_changed(tensor=tensor("source", np.array([3]))), "INVALID_SHAPE", "open.prime.inputs[source].shape"),
        (_changed(tensor=tensor("source", np.zeros((1, 10), int))), "INVALID_SHAPE", "open.prime.inputs[source].shape"),
        (_changed(tensor=tensor("source", np.zeros((2, 3), int))), "INVALID_SHAPE", "open.prime.inputs[source].shape"),
        (_changed(tensor=tensor("source", np.array([[3, 99, 4]]))), "OUT_OF_RANGE", "open.prime.inputs[source], row 0"),
    ],
)
def test_what_is_read_first_is_checked(repository: Path, prime: inference_pb2.Prime, reason: str, where: str) -> None:
    """A wrong prime input is refused by its field; the stream goes on and no session stays."""

    async def scenario(running: Loopback) -> tuple[str, str]:
        async with running.stream() as client:
            request = inference_pb2.OpenSessions(model="translator", count=1, prime=prime)
            detail = await client.refusal(open=request)
            assert running.host.table.num_sessions == 0
            [handle] = await client.handles("translator", prime=PRIME)
            await client.send(close=inference_pb2.CloseSessions(handles=np.uint64(handle).tobytes()))
            return errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_"), detail.field

    assert serve_and(repository, scenario) == (reason, where)


def test_states_given_are_checked(repository: Path) -> None:
    """States of a wrong name, dtype, shape or value are refused by their field, and so are integers without a range."""
    shape = (1, *next(state.shape for state in MODEL.states if state.name == "h"))
    cases = [
        (tensor("k", np.zeros(shape, np.float32)), "UNKNOWN_INPUT", "open.initial_states"),
        (tensor("h", np.zeros(shape, np.int64)), "INVALID_DTYPE", "open.initial_states[h].dtype"),
        (tensor("h", np.zeros((2, 2), np.float32)), "INVALID_SHAPE", "open.initial_states[h].shape"),
        (tensor("h", np.full(shape, np.nan, np.float32)), "NON_FINITE", "open.initial_states[h], row 0"),
    ]
    write_model(repository, "look-ahead")
    write_model(repository, "history")
    wrong_count = tensor("count", np.array([3])), "OUT_OF_RANGE", "open.initial_states[count], row 0"
    no_range = tensor("history", np.array([3])), "UNKNOWN_INPUT", "open.initial_states[history]"

    async def scenario(running: Loopback) -> None:
        async with running.stream() as client:
            for given, reason, where in cases:
                request = inference_pb2.OpenSessions(model="translator", count=1, prime=PRIME, initial_states=[given])
                detail = await client.refusal(open=request)
                assert errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_") == reason
                assert detail.field == where
            for name, (given, reason, where) in (("look-ahead", wrong_count), ("history", no_range)):
                request = inference_pb2.OpenSessions(model=name, count=1, initial_states=[given])
                detail = await client.refusal(open=request)
                assert errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_") == reason
                assert detail.field == where

    serve_and(repository, scenario)
