"""The resume token: what `AttachSession` asks for beside a session's id."""

import asyncio
from pathlib import Path

from loopback import attach_request, configure, serve

from eddy.service.errors import Reason
from eddy.v1 import inference_pb2, sessions_pb2


def test_only_the_token_takes_a_session_over(repository: Path) -> None:
    """Every session has a token of its own; without it, or with another's, nobody takes the session over."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as first, loopback.stream() as second:
            opened = await first.open("history", 2)
            assert len({opened.resume_tokens[at : at + 16] for at in (0, 16)}) == 2
            wrong = attach_request(opened, 0)
            for token in (b"", bytes(16), attach_request(opened, 1).resume_token, wrong.resume_token + b"x"):
                wrong.resume_token = token
                detail = await second.refusal(attach=wrong)
                assert (detail.reason, detail.field) == (Reason.WRONG_RESUME_TOKEN, "resume_token")
            response = await second.send(attach=attach_request(opened, 1))
            assert response.attached.handle

    asyncio.run(scenario())


def test_the_token_is_told_once(repository: Path) -> None:
    """A session opened by a unary call has its token in the answer; whoever asks for the session later is not told."""

    async def scenario() -> None:
        async with serve(configure(repository)) as loopback, loopback.stream() as stream:
            request = sessions_pb2.OpenSessionRequest(model="history")
            opened = await loopback.unary("SessionService/OpenSession", request, sessions_pb2.OpenSessionResponse)
            session = opened.session
            asked = sessions_pb2.GetSessionRequest(session_id=session.session_id)
            found = await loopback.unary("SessionService/GetSession", asked, sessions_pb2.GetSessionResponse)
            assert not found.session.resume_token
            attach = inference_pb2.AttachSession(session_id=session.session_id, resume_token=session.resume_token)
            assert (await stream.send(attach=attach)).attached.handle

    asyncio.run(scenario())
