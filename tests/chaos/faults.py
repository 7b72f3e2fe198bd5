"""What may go wrong with a request to an S3 server, and a plan, decided by a seed, of what does."""

import random
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """One thing that goes wrong between a client and the server."""

    SLOW_DOWN = "503 SlowDown"
    SERVER_ERROR = "500 InternalError"
    RESET_BEFORE = "connection reset before the request is forwarded"
    RESET_AFTER = "connection reset after the request was served"
    RESET_IN_REQUEST = "connection reset inside the request's body"
    RESET_IN_ANSWER = "connection reset inside the answer's body"
    TRUNCATED = "answer cut off and closed"
    FLIPPED_REQUEST = "a bit of the request's body flipped"
    FLIPPED_ANSWER = "a bit of the answer's body flipped"
    SLOW_ANSWER = "answer's body in slow pieces"
    PRECONDITION = "412 after own success"
    CONFLICT = "409 to a conditional write"
    LOST_COMPLETION = "lost answer of CompleteMultipartUpload"
    EXPIRED = "400 ExpiredToken"


@dataclass(frozen=True)
class Request:
    """An HTTP request as it came: its first line and headers, and its whole body."""

    method: str
    target: str
    head: bytes
    headers: dict[str, str]
    body: bytes

    @property
    def identity(self) -> str:
        """The same for every repetition of the request, whatever ids the server gave out in between."""
        path, _, query = self.target.partition("?")
        words = [word for word in query.split("&") if not word.startswith(("uploadId=", "x-id="))]
        return f"{self.method} {path} {'&'.join(words)}"

    @property
    def completes_upload(self) -> bool:
        return self.method == "POST" and "uploadId=" in self.target

    @property
    def is_conditional(self) -> bool:
        return self.method == "PUT" and "if-none-match" in self.headers


class FaultPlan:
    """Gives a share of the requests a fault, of the rare ones twice as many, and none after `times` repetitions.

    The same seed gives the n-th repetition of a request the same fault.
    """

    def __init__(self, seed: int, share: float, kinds: tuple[Fault, ...] = (), times: int | None = None) -> None:
        self.enabled = True
        self.counts: Counter[Fault] = Counter()
        self.num_requests = 0
        self._seed = seed
        self._share = share
        self._times = times
        self._kinds = kinds or tuple(kind for kind in Fault if kind is not Fault.EXPIRED)
        self._repetitions: Counter[str] = Counter()

    def draw(self, request: Request) -> Fault | None:
        """The fault that this request meets, if it meets one."""
        self.num_requests += 1
        if not self.enabled:
            return None
        repetition = self._repetitions[request.identity]
        self._repetitions[request.identity] += 1
        lot = random.Random(f"{self._seed} {request.identity} {repetition}")
        possible = [kind for kind in self._kinds if _can_meet(kind, request)]
        share = self._share * (2 if request.is_conditional or request.completes_upload else 1)
        spared = self._times is not None and repetition >= self._times
        if spared or not possible or lot.random() >= share:
            return None
        return lot.choice(possible)

    @property
    def num_faulted(self) -> int:
        """How many requests met a fault."""
        return sum(self.counts.values())


def flipped(data: bytes, lot: random.Random) -> bytes:
    """`data` with one bit changed."""
    place = lot.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << lot.randrange(8)]) + data[place + 1 :]


def _can_meet(kind: Fault, request: Request) -> bool:
    if kind in (Fault.RESET_IN_REQUEST, Fault.FLIPPED_REQUEST):
        return bool(request.body)
    if kind in (Fault.RESET_IN_ANSWER, Fault.TRUNCATED, Fault.FLIPPED_ANSWER, Fault.SLOW_ANSWER):
        return request.method in ("GET", "POST")
    if kind is Fault.PRECONDITION:
        return request.is_conditional
    if kind is Fault.CONFLICT:
        return request.is_conditional or request.completes_upload
    if kind is Fault.LOST_COMPLETION:
        return request.completes_upload
    return True
