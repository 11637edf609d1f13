"""`compare --reference https://…#MODEL`: the endpoint is asked first, and the file of its answers stands for the model."""

from __future__ import annotations

from dataclasses import replace

from localgemma import net, settings
from localgemma.compare import remote
from localgemma.compare.endpoint import Endpoint, is_address, parse
from localgemma.compare.run import Hands, Job
from localgemma.errors import UsageError


def endpoint_of(reference: str | None, positions: int | None) -> Endpoint | None:
    """The endpoint that a reference names; None where it names none. Raises UsageError, OfflineError."""
    if reference is None or not is_address(reference):
        if positions is not None:
            raise UsageError("--positions is for a reference behind an address.", "Leave it out.")
        return None
    endpoint = parse(reference, settings.load().api_key)
    net.require_online(endpoint.host)
    return endpoint


def answered(job: Job, endpoint: Endpoint, positions: int | None, hands: Hands) -> Job:
    """The comparison with the endpoint's answers as its reference. Raises what asking and opening do."""
    like = job.candidates[0]
    wanted = remote.Asked(
        endpoint, job.corpus, like, replace(job.load, image_tokens=0), job.store, job.around,
        remote.POSITIONS if positions is None else positions, job.save_reference,
    )  # fmt: skip
    engine = hands.open(like, wanted.load)
    try:
        opened = remote.fetch(wanted, engine, hands.told, hands.cancel)
    finally:
        engine.close()
    longest = max(len(sample.passage) for sample in opened.samples)
    load = replace(wanted.load, ctx=max(job.load.ctx or 0, longest))
    return replace(job, reference=opened, save_reference=None, load=load)
