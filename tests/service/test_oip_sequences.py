"""Sequences of the Open Inference Protocol: START, END, ids, order and ends, through Triton's own client."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oip
import pytest
import triton_steps as triton
from graphs import history_in
from loopback import Loopback, configure, serve, until, write_model
from tritonclient.utils import InferenceServerException

from eddy.oip import grpc_service_pb2


def _with_server(repository: Path, work: Callable[[Loopback], Any], **config: Any) -> None:
    """Runs `work`, which blocks, beside a server."""

    async def scenario() -> None:
        async with serve(configure(repository, **config)) as loopback:
            await asyncio.to_thread(work, loopback)

    asyncio.run(scenario())


@pytest.mark.parametrize("sequence_id", [7, (1 << 63) - 1, "a device"])
def test_a_sequence_is_stepped_by_unary_calls(repository: Path, sequence_id: Any) -> None:
    """The answers spell the sequence's history, from START to END; its slot is free after the END."""

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client:
            assert triton.step(client, 1, 2, sequence_id=sequence_id, sequence_start=True) == [1, 12]
            assert loopback.host.table.num_sessions == 1
            assert triton.step(client, 3, sequence_id=sequence_id) == [123]
            assert triton.step(client, 4, sequence_id=sequence_id, sequence_end=True) == [1234]
            assert loopback.host.table.num_sessions == 0

    _with_server(repository, work)


def test_a_sequence_of_one(repository: Path) -> None:
    """START and END together: answered, and nothing stays."""

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client:
            assert triton.step(client, 5, sequence_id=1, sequence_start=True, sequence_end=True) == [5]
            assert loopback.host.table.num_sessions == 0

    _with_server(repository, work)


def test_ids_of_numbers_and_text_are_apart(repository: Path) -> None:
    """5 and "5" are two sequences."""

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client:
            assert triton.step(client, 1, sequence_id=5, sequence_start=True) == [1]
            assert triton.step(client, 2, sequence_id="5", sequence_start=True) == [2]
            assert triton.step(client, 3, sequence_id=5) == [13]
            assert triton.step(client, 3, sequence_id="5") == [23]

    _with_server(repository, work)


@pytest.mark.parametrize("sequence_id", [9, "nine"])
def test_a_step_without_start_is_refused_in_tritons_words(repository: Path, sequence_id: Any) -> None:
    """Before any START, and after an END."""
    text = (
        f"inference request for sequence {sequence_id} to model 'history' must specify the START flag on the first "
        "request of the sequence"
    )

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client:
            assert triton.refusal(client, 1, sequence_id=sequence_id) == ("INVALID_ARGUMENT", text)
            assert triton.refusal(client, 1, sequence_id=sequence_id, sequence_end=True) == ("INVALID_ARGUMENT", text)
            triton.step(client, 1, sequence_id=sequence_id, sequence_start=True, sequence_end=True)
            assert triton.refusal(client, 1, sequence_id=sequence_id) == ("INVALID_ARGUMENT", text)

    _with_server(repository, work)


def test_a_request_of_no_sequence_is_refused(repository: Path) -> None:
    """A model that streams wants a sequence, as Triton's sequence batcher does."""

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client:
            code, text = triton.refusal(client, 1)
            assert code == "INVALID_ARGUMENT"
            assert "must specify a non-zero or non-empty correlation ID" in text

    _with_server(repository, work)


def test_start_on_a_live_sequence_begins_it_anew_and_is_counted(repository: Path) -> None:
    """As Triton does, without a word; the session stays one, and the metric counts it."""

    def work(loopback: Loopback) -> None:
        stats = loopback.host.catalog.served[0].stats
        with triton.connect(loopback) as client:
            triton.step(client, 1, 2, sequence_id=3, sequence_start=True)
            assert stats.num_restarted_sequences == 0
            assert triton.step(client, 7, sequence_id=3, sequence_start=True) == [7]
            assert triton.step(client, 8, sequence_id=3) == [78]
            assert stats.num_restarted_sequences == 1
            assert loopback.host.table.num_sessions == 1

    _with_server(repository, work)


def test_a_sequence_lives_across_connections_and_streams(repository: Path) -> None:
    """Begun on a stream, continued by a call over another connection, ended on another stream."""

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client, triton.Inbox(client) as inbox:
            inbox.send(1, sequence_id=4, sequence_start=True)
            assert inbox.take_answers() == [1]
        with triton.connect(loopback) as client:
            assert triton.step(client, 2, sequence_id=4) == [12]
        with triton.connect(loopback) as client, triton.Inbox(client) as inbox:
            inbox.send(3, sequence_id=4, sequence_end=True)
            assert inbox.take_answers() == [123]
        assert loopback.host.table.num_sessions == 0

    _with_server(repository, work)


def test_requests_in_flight_apply_in_the_order_sent(repository: Path) -> None:
    """Three sequences on one stream, everything sent before anything is read; then each id begins again."""

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client, triton.Inbox(client) as inbox:
            for _ in range(2):
                for number in range(1, 6):
                    for sequence in (1, 2, 3):
                        inbox.send(
                            number,
                            sequence_id=sequence,
                            sequence_start=number == 1,
                            sequence_end=number == 5,
                            request_id=f"{sequence}/{number}",
                        )
            given: dict[str, list[list[int]]] = {}
            for _ in range(30):
                result, error = inbox.take()
                assert error is None, error
                given.setdefault(result.get_response().id, []).append(triton.answers(result))
        assert given == {
            f"{sequence}/{number}": [[int("12345"[:number])]] * 2 for sequence in (1, 2, 3) for number in range(1, 6)
        }
        assert loopback.host.table.num_sessions == 0
        assert loopback.host.catalog.served[0].stats.num_restarted_sequences == 0

    _with_server(repository, work)


def test_an_error_on_a_stream_names_its_request_and_the_stream_goes_on(repository: Path) -> None:
    """The error's text is the answer, with the request's id; the requests behind it are answered."""

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client, triton.Inbox(client) as inbox:
            inbox.send(1, sequence_id=6, request_id="early")
            _, error = inbox.take()
            assert error is not None
            assert "must specify the START flag" in error.message()
            inbox.send(1, sequence_id=6, sequence_start=True)
            assert inbox.take_answers() == [1]

    _with_server(repository, work)


def test_an_idle_sequence_expires(repository: Path) -> None:
    """After the idle timeout the sequence is gone, and a step must START it again; nothing of it is kept."""
    now = [0.0]

    async def scenario() -> None:
        config = configure(repository, session={"idle_timeout_seconds": 60.0, "sweep_seconds": 3600.0})
        async with serve(config, clock=lambda: now[0]) as loopback:

            def begin() -> None:
                with triton.connect(loopback) as client:
                    triton.step(client, 1, sequence_id=2, sequence_start=True)

            def go_on() -> None:
                with triton.connect(loopback) as client:
                    code, text = triton.refusal(client, 1, sequence_id=2)
                    assert code == "INVALID_ARGUMENT"
                    assert "must specify the START flag" in text

            await asyncio.to_thread(begin)
            now[0] = 61.0
            assert loopback.host.endings.expire() == 1
            await asyncio.to_thread(go_on)
            await until(lambda: loopback.host.table.num_sessions == 0)

    asyncio.run(scenario())


def test_a_start_that_is_refused_begins_nothing(tmp_path: Path) -> None:
    """A value that the model does not take: the sequence does not live, and its slot is free."""
    write_model(tmp_path, "lstm")

    def work(loopback: Loopback) -> None:
        with triton.connect(loopback) as client:
            contract = loopback.host.catalog.served[0].contract
            port = contract.inputs[0]
            bad = np.full((1, 1, *port.shape), np.nan, port.dtype)
            with pytest.raises(InferenceServerException, match="finite"):
                client.infer("lstm", [triton.tensor(port.name, bad)], sequence_id=1, sequence_start=True)
            assert loopback.host.table.num_sessions == 0
            with pytest.raises(InferenceServerException, match="START"):
                client.infer("lstm", [triton.tensor(port.name, np.zeros_like(bad))], sequence_id=1)

    _with_server(tmp_path, work)


def _step(kind: str, sequence_id: int | str, *digits: int, start: bool = False) -> grpc_service_pb2.ModelInferRequest:
    """A request for `history` whose id is a parameter of that kind."""
    message = oip.request("history", {"x": np.array([digits], np.int64)})
    setattr(message.parameters["sequence_id"], kind, sequence_id)
    message.parameters["sequence_start"].bool_param = start
    return message


def _last(answer: grpc_service_pb2.ModelStreamInferResponse) -> int:
    assert not answer.error_message, answer.error_message
    return int(oip.arrays(answer.infer_response)[0][0, -1])


@pytest.mark.parametrize("number", [1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_an_id_is_one_number_however_it_is_written(repository: Path, number: int) -> None:
    """Unsigned and signed, which is the same modulo 2**64: one sequence, also once its requests are known by layout."""
    signed = number - (1 << 64) if number >= 1 << 63 else number

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, oip.stream(loopback) as stream:
            spelled = 1
            assert _last(await stream.send(_step("uint64_param", number, 1, start=True))) == 1
            for digit in (2, 3, 4, 5):
                for kind, value in (("uint64_param", number), ("int64_param", signed)):
                    spelled = 10 * spelled + digit
                    assert _last(await stream.send(_step(kind, value, digit))) == spelled
            answer = await oip.infer(loopback, _step("uint64_param", number, 9))
            assert oip.arrays(answer)[0].tolist() == [[10 * spelled + 9]]
            assert loopback.host.table.num_sessions == 1
            # Its neighbours, which differ in the last bit, are others.
            refused = await stream.send(_step("uint64_param", number ^ 1, 1))
            assert "non-zero" in refused.error_message if number == 1 else "START" in refused.error_message

    asyncio.run(scenario())


def test_a_start_that_is_refused_on_a_live_sequence(tmp_path: Path) -> None:
    """For its form: the sequence is as it was, as Triton has it. For its values: it has ended, nothing is mixed."""
    write_model(tmp_path, "lstm")

    async def scenario() -> None:
        async with serve(configure(tmp_path)) as loopback, oip.stream(loopback) as stream:
            [model] = loopback.host.catalog.served
            [port] = model.contract.inputs

            def step(value: float, *, rows: int = 1, start: bool = False) -> grpc_service_pb2.ModelInferRequest:
                values = np.full((rows, 1, *port.shape), value, port.dtype)
                return oip.request("lstm", {port.name: values}, sequence=3, start=start)

            for sequence in (step(0.5, start=True), step(0.25)):
                expected = await stream.send(sequence)
                assert not expected.error_message
            await stream.send(step(0.5, start=True))
            # In flight together: what is behind the START meets what it has left.
            futures = [await stream.post(each) for each in (step(0.5, rows=2, start=True), step(0.25))]
            wrong, after = [await asyncio.wait_for(each, 30) for each in futures]
            assert "batch-size 1" in wrong.error_message
            assert after.infer_response.raw_output_contents == expected.infer_response.raw_output_contents
            futures = [await stream.post(each) for each in (step(np.nan, start=True), step(0.25))]
            wrong, after = [await asyncio.wait_for(each, 30) for each in futures]
            assert "finite" in wrong.error_message
            assert "must specify the START flag" in after.error_message
            await until(lambda: loopback.host.table.num_sessions == 0)
            again = [await stream.send(each) for each in (step(0.5, start=True), step(0.25))]
            assert again[1].infer_response.raw_output_contents == expected.infer_response.raw_output_contents

    asyncio.run(scenario())


def test_the_next_start_after_a_new_version(tmp_path: Path) -> None:
    """A sequence without a version stays on the one that it began with; its next START begins it on the latest.

    What it left there goes on for those who name that version, and ends when it is idle.
    """
    write_model(tmp_path, "history")

    async def scenario() -> None:
        config = configure(tmp_path, repository={"poll_seconds": 0.0})
        async with serve(config) as loopback, oip.stream(loopback) as stream:

            async def step(digit: int, version: str = "", *, start: bool = False) -> tuple[int, str]:
                message = _step("int64_param", 8, digit, start=start)
                message.model_version = version
                answer = await stream.send(message)
                return _last(answer), answer.infer_response.model_version

            assert await step(1, start=True) == (1, "1")
            write_model(tmp_path, "history", "2", history_in(7).model())
            await loopback.host.load_model("history")
            assert await step(2) == (12, "1")
            assert await step(1, start=True) == (1, "2")
            assert await step(2) == (9, "2")
            assert await step(3, "1") == (123, "1")
            assert await step(3, "2") == (66, "2")
            assert loopback.host.table.num_sessions == 2
            # Another file under the same version: the sequence there is begun anew, the old one is left to nobody.
            (tmp_path / "history" / "2" / ".new").write_bytes(history_in(5).model().SerializeToString())
            (tmp_path / "history" / "2" / ".new").rename(tmp_path / "history" / "2" / "model.onnx")
            await loopback.host.load_model("history")
            assert await step(1) == (463, "2")
            assert await step(1, start=True) == (1, "2")
            assert await step(2) == (7, "2")
            assert loopback.host.table.num_sessions == 2

    asyncio.run(scenario())
