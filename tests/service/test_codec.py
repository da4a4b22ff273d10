"""The tables between reasons, wire numbers and gRPC codes, and how errors are quoted."""

import grpc
import pytest
from graphs import family

from eddy.service import codec
from eddy.service.contract import read_contract
from eddy.service.errors import ClientError, Detail, Reason, invalid
from eddy.v1 import errors_pb2


def test_every_reason_is_on_the_wire_and_has_a_code() -> None:
    """Reasons are the wire's numbers under the wire's names, and each has one valid gRPC status code, never OK."""
    wire = {name.removeprefix("ERROR_REASON_"): number for name, number in errors_pb2.ErrorReason.items()}
    del wire["UNSPECIFIED"]
    assert {reason.name: int(reason) for reason in Reason} == wire
    assert set(codec.GRPC_CODES) == set(Reason)
    codes = {code.value[0] for code in grpc.StatusCode} - {0}
    assert set(codec.GRPC_CODES.values()) <= codes


@pytest.mark.parametrize("reason", Reason)
def test_an_error_as_a_status(reason: Reason) -> None:
    """The status carries our detail and a `google.rpc.ErrorInfo`; numbers that are 0 are told from absent ones."""
    status = codec.error_status(ClientError(reason, "why", Detail("field", "this", "that", next_position=0)))
    detail = errors_pb2.ErrorDetail()
    assert status.details[0].Unpack(detail)
    assert (Reason(detail.reason), detail.message, detail.field) == (reason, "why", "field")
    assert (detail.received, detail.expected) == ("this", "that")
    assert detail.HasField("next_position")
    assert not detail.HasField("epoch")
    assert status.code == detail.grpc_code == codec.GRPC_CODES[reason]
    assert status.details[1].type_url.endswith("google.rpc.ErrorInfo")


def test_long_values_are_quoted_in_part() -> None:
    """Whatever came, an error fits into HTTP/2 trailers, and says how long the value was."""
    error = invalid(Reason.UNKNOWN_MODEL, "model", "\N{SNOWMAN}" * 100_000, "history")
    status = codec.error_status(error)
    assert status.ByteSize() < 6000
    assert "100000 characters" in codec.error_detail(error).received


def test_an_error_names_field_received_and_expected() -> None:
    """The sentence has all three, and so has the detail."""
    error = invalid(Reason.INVALID_SHAPE, "inputs[x].shape", [1, 2], [2, 1])
    assert error.message == "inputs[x].shape: got [1, 2], expected [2, 1]"
    assert error.detail == Detail("inputs[x].shape", "[1, 2]", "[2, 1]")


def test_the_head_of_a_freed_contract_is_forgotten() -> None:
    """Another contract may lie where it lay: what was encoded for it is not used again, that of others is."""
    responses = codec.StepResponses()
    first, second = read_contract(family("history").model()), read_contract(family("lstm").model())
    heads = [responses.head(contract, 2, 3) for contract in (first, second)]
    assert responses.head(first, 2, 3) is heads[0]
    responses.forget(first)
    assert responses.head(first, 2, 3) is not heads[0]
    assert responses.head(second, 2, 3) is heads[1]
