"""Text by the contract's vocabulary, through a real server: models that differ in nothing but their vocabulary."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import onnx
import pytest
from google.protobuf import json_format
from loopback import Loopback, configure, detail_of, serve, write_model

from eddy.service.contract import METADATA_KEY
from eddy.v1 import contract_pb2, errors_pb2, generation_pb2

SHIPPED = Path(__file__).resolve().parent.parent.parent / "models" / "text-rnn" / "1" / "model.onnx"
SAMPLING = generation_pb2.Sampling(seed=3, temperature=0.8)
Vocabulary = contract_pb2.Vocabulary
Change = Callable[[Vocabulary], Any]


def with_vocabulary(repository: Path, name: str, change: Change) -> Vocabulary:
    """Puts a shipped model under another name and with another vocabulary into a repository; returns that."""
    model = onnx.load(str(SHIPPED))
    [entry] = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    contract = contract_pb2.ModelContract()
    json_format.Parse(entry.value, contract)
    contract.name = name
    change(contract.vocabulary)
    entry.value = json_format.MessageToJson(contract, preserving_proto_field_name=True)
    write_model(repository, name, model=model)
    return contract.vocabulary


async def generate(running: Loopback, model: str, **fields: Any) -> tuple[list[int], str]:
    """Ids and text of a whole call."""
    method = running.channel.unary_stream(
        "/eddy.v1.GenerationService/Generate", None, generation_pb2.GenerateResponse.FromString
    )
    request = generation_pb2.GenerateRequest(
        open=generation_pb2.NewSession(model=model), max_tokens=60, sampling=SAMPLING, **fields
    )
    ids, text = [], ""
    async for response in method(request.SerializeToString()):
        ids += [token.id for token in response.tokens.tokens]
        text += response.tokens.text
    return ids, text


async def refusal(running: Loopback, model: str, **fields: Any) -> tuple[str, str, str]:
    """Reason, field and what came of a call that must be refused, and leave no session."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(running, model, **fields)
    assert running.host.table.num_sessions == 0
    detail = detail_of(caught.value)
    return errors_pb2.ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_"), detail.field, detail.received


def test_symbols_are_the_contracts(tmp_path: Path) -> None:
    """The same model with other symbols reads and writes those: nothing is known of characters but the contract."""
    plain = with_vocabulary(tmp_path, "plain", lambda _: None)
    hangul = [chr(0xAC00 + number) for number in range(len(plain.symbols))]
    hangul[1] = "\U0001f642"  # Four bytes of UTF-8.

    def rename(vocabulary: Vocabulary) -> None:
        vocabulary.symbols[:] = hangul

    with_vocabulary(tmp_path, "hangul", rename)
    ids = [list(plain.symbols).index(character) for character in "The\nclass "]

    async def check() -> None:
        async with serve(configure(tmp_path)) as running:
            written, text = await generate(running, "plain", text=b"The\nclass ")
            assert text == "".join(plain.symbols[number] for number in written)
            for prompt in (
                {"text": "".join(hangul[number] for number in ids).encode()},
                {"tokens": generation_pb2.TokenIds(ids=ids)},
            ):
                found, text = await generate(running, "hangul", **prompt)
                assert found == written
                assert text == "".join(hangul[number] for number in written)

    asyncio.run(check())


def test_without_an_unknown_token_an_unknown_character_is_refused(tmp_path: Path) -> None:
    """The contract gives none: the error says which character and where, and the known ones are written on."""
    with_vocabulary(tmp_path, "strict", lambda vocabulary: vocabulary.ClearField("unknown_id"))
    with_vocabulary(tmp_path, "lenient", lambda _: None)

    async def check() -> None:
        async with serve(configure(tmp_path)) as running:
            assert await refusal(running, "strict", text="a ☃ b ☂".encode()) == (
                "UNKNOWN_SYMBOL",
                "text",
                "'☃' at character 2",
            )
            # A character that comes in part is no unknown one.
            for text in ("a☃".encode()[:-1], b"\xed\xa0\x80", b"\xc0\xaf"):
                reason, field, _ = await refusal(running, "strict", text=text)
                assert (reason, field) == ("INVALID_TEXT", "text")
                assert (await refusal(running, "lenient", text=text))[0] == "INVALID_TEXT"
            assert len((await generate(running, "strict", text=b"The class "))[1]) == 60
            assert len((await generate(running, "lenient", text="The ☃ ".encode()))[1]) == 60

    asyncio.run(check())


@pytest.mark.parametrize("unit", ["", "word"])
def test_a_model_without_characters_takes_and_gives_ids(tmp_path: Path, unit: str) -> None:
    """No vocabulary, or one that is not of characters: ids as with one, no text, and texts are refused by field."""
    plain = with_vocabulary(tmp_path, "plain", lambda _: None)

    def change(vocabulary: Vocabulary) -> None:
        if unit:
            vocabulary.unit = unit
        else:
            del vocabulary.symbols[:]

    with_vocabulary(tmp_path, "numbers", change)
    ids = generation_pb2.TokenIds(ids=[list(plain.symbols).index(character) for character in "The class "])

    async def check() -> None:
        async with serve(configure(tmp_path)) as running:
            written, _ = await generate(running, "plain", text=b"The class ")
            assert await generate(running, "numbers", tokens=ids) == (written, "")
            assert (await refusal(running, "numbers", text=b"The"))[:2] == ("WRONG_TASK", "text")
            assert (await refusal(running, "numbers", tokens=ids, stop=["a"]))[:2] == ("WRONG_TASK", "stop")

    asyncio.run(check())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda vocabulary: vocabulary.symbols.pop(), "100 symbols, the model has scores for 101"),
        (lambda vocabulary: vocabulary.symbols.append("x"), "102 symbols, the model has scores for 101"),
        (
            lambda vocabulary: setattr(vocabulary, "unknown_id", 101),
            "unknown_id is 101, the model has scores for 101 tokens",
        ),
        (
            lambda vocabulary: (vocabulary.ClearField("symbols"), setattr(vocabulary, "unknown_id", 500)),
            "unknown_id is 500",
        ),
    ],
)
def test_a_vocabulary_that_does_not_fit_its_model_is_refused(tmp_path: Path, change: Change, complaint: str) -> None:
    """When it is loaded, not in the middle of somebody's text; the models beside it are served."""
    with_vocabulary(tmp_path, "wrong", change)
    with_vocabulary(tmp_path, "right", lambda _: None)

    async def check() -> None:
        async with serve(configure(tmp_path)) as running:
            entries = {entry.file.name: entry for entry in running.host.catalog}
            error = entries["wrong"].error
            assert error is not None
            assert complaint in error.message
            assert len((await generate(running, "right", text=b"The"))[1]) == 60

    asyncio.run(check())
