"""Requests to an S3 server: clients, what is tried again and for how long, and what the user is told to do.

botocore's own retries are off: they end after a few seconds, and hide how often a request was sent.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import boto3
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth
from botocore.client import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    SSLError,
    SSOError,
    TokenRetrievalError,
)
from botocore.exceptions import ConnectionError as NoConnection
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError as BrokenBody

from tasks.errors import InputError
from tasks.storage.content import Content, FileContent
from tasks.storage.manifest import NUM_THREADS
from tasks.storage.s3_options import S3Options

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
FAILURES_UNTOLD = 2
DEFAULT_REGION = "us-east-1"
LOCAL_SERVER = "For a server on this machine: python -m infra.local_s3 start, then eval the lines of its `env`."
CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to keys of this server."
RIGHTS = (
    "Give these keys the right to list, read, write and delete there (infra/s3/ has a policy), or use others; "
    "if ALIGNMENT_S3_BUCKET_OWNER is set, check it."
)
CLOCK = "Set this machine's clock (timedatectl set-ntp true)."
ELSEWHERE = "The bucket lies in another region: set AWS_REGION to it."
LOG_IN = "Log in again: the session has expired."
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired")
REMEDIES = {
    "InvalidAccessKeyId": CREDENTIALS,
    "InvalidToken": CREDENTIALS,
    "SignatureDoesNotMatch": CREDENTIALS,
    **dict.fromkeys(EXPIRED, LOG_IN),
    "AccessDenied": RIGHTS,
    "AllAccessDisabled": RIGHTS,
    "403": RIGHTS,
    "RequestTimeTooSkewed": CLOCK,
    "RequestExpired": CLOCK,
    "PermanentRedirect": ELSEWHERE,
    "AuthorizationHeaderMalformed": ELSEWHERE,
    "IllegalLocationConstraintException": ELSEWHERE,
    "301": ELSEWHERE,
    "400": "The server does not say why. Most often the session has expired, or AWS_REGION is not the bucket's.",
    "NoSuchBucket": "Create the bucket, or correct the store's address.",
    "InvalidBucketName": "A bucket's name is 3 to 63 lower-case letters, digits, dots and hyphens.",
    "QuotaExceeded": "The store is full: free space there.",
    "KMS.NotFoundException": "Set ALIGNMENT_S3_SSE_KMS_KEY_ID to a key that is there and that these keys may use.",
    "KMS.DisabledException": "Enable the key of ALIGNMENT_S3_SSE_KMS_KEY_ID, or name another.",
}
SPOILT = ("BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "")  # on its way; without a code, the answer was
PASSING = ("RequestTimeout", "SlowDown", "OperationAborted", *SPOILT)
LASTING = ("NotImplemented", "BucketAlreadyExists", "BucketAlreadyOwnedByYou", "BucketNotEmpty", "InvalidBucketState")
WRONG_TLS = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "doesn't match")
OUTAGES = (HTTPClientError, NoConnection, IncompleteReadError, ResponseParserError, BrokenBody)
FAILURES = (BotoCoreError, ClientError, ResponseParserError, BrokenBody)

SIGNATURE = "s3v4-hashed"
CONTENTS = (Content, FileContent)

T = TypeVar("T")

logger = logging.getLogger(__name__)


class HashedSignature(S3SigV4Auth):
    """Signature version 4 with the SHA-256 that content is said to have: a server that checks it hashes for us."""

    def payload(self, request: Any) -> str:
        return request.body.sha256 if isinstance(request.body, CONTENTS) else str(super().payload(request))


AUTH_TYPE_MAPS[SIGNATURE] = HashedSignature


class Requests:
    """Sends requests to the server of the store `uri` from any number of threads; each outage is waited out."""

    def __init__(self, uri: str, options: S3Options) -> None:
        self._uri = uri
        self._deadline_s = options.deadline_s
        self._lock = threading.Lock()
        self._session, self._client = self._connect()

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return str(self._client.meta.endpoint_url)

    @property
    def place(self) -> str:
        """The store and the server, for messages."""
        return f"{self._uri} at {self.endpoint}"

    def send(self, request: Callable[[Any], T], patience_s: float | None = None) -> T:
        """The request's result; one that fails is repeated with fresh clients for the deadline, or for `patience_s`.

        Raises InputError at once for what the user can mend, ClientError for other refusals, ConnectionError when
        the time is over.
        """
        pauses, renewed = pauses_within(self._deadline_s if patience_s is None else patience_s), False
        while True:
            client = self._client
            try:
                return request(client)
            except FAILURES as error:
                if code_of(error) in EXPIRED and not renewed:
                    renewed = True
                    self._renew(client, credentials=True)
                    continue
                if remedy := remedy_for(error):
                    raise InputError(f"{self.place}: {error}. {remedy}") from error
                if not is_outage(error):
                    raise
                self._pause(pauses, error)
            self._renew(client)

    def _pause(self, pauses: Iterator[tuple[int, float]], error: Exception) -> None:
        """Wait before the next try; raise ConnectionError when none is left."""
        failures, pause_s = next(pauses, (0, None))
        if pause_s is None:
            raise ConnectionError(f"{self.place} gives no answer ({error}).") from error
        if failures == FAILURES_UNTOLD + 1:
            logger.warning(
                "%s gives no answer (%s); it is asked for up to %.0f s.", self.place, error, self._deadline_s
            )
        time.sleep(pause_s)

    def _renew(self, failed: Any, credentials: bool = False) -> None:
        """A fresh client in place of `failed`, unless another thread has made one; with `credentials` read anew."""
        with self._lock:
            if credentials:
                self._session, self._client = self._connect()
            elif failed is self._client:
                self._client = _client_of(self._session)

    def _connect(self) -> tuple[Any, Any]:
        try:
            session = boto3.session.Session()
            return session, _client_of(session)
        except (ProfileNotFound, NoRegionError, ValueError) as error:
            raise InputError(f"{self._uri}: {error}. Check AWS_PROFILE, AWS_REGION and AWS_ENDPOINT_URL_S3.") from error


def pauses_within(deadline_s: float) -> Iterator[tuple[int, float]]:
    """(number of failures so far, seconds to wait) until `deadline_s` after the first: exponential, full jitter."""
    end = time.monotonic() + deadline_s
    failures, limit_s = 0, FIRST_PAUSE_S
    while (left_s := end - time.monotonic()) > 0:
        failures += 1
        yield failures, min(random.uniform(0, limit_s), left_s)
        limit_s = min(2 * limit_s, LONGEST_PAUSE_S)


def remedy_for(error: Exception) -> str | None:
    """What the user can do about it; None where that is nothing."""
    if isinstance(error, ClientError):
        return REMEDIES.get(code_of(error))
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"{CREDENTIALS} {LOCAL_SERVER}"
    if isinstance(error, CredentialRetrievalError | TokenRetrievalError | SSOError):
        return LOG_IN
    if isinstance(error, SSLError) and any(sign in str(error) for sign in WRONG_TLS):
        return "Check the scheme in AWS_ENDPOINT_URL_S3 and the certificates in AWS_CA_BUNDLE."
    return None


def is_outage(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ClientError):
        passing = status_of(error) in (409, 429) or status_of(error) >= 500 or code_of(error) in PASSING
        return passing and code_of(error) not in LASTING
    return isinstance(error, OUTAGES)


def code_of(error: Exception) -> str:
    """S3's name of a refusal; empty for what is none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def status_of(error: ClientError) -> int:
    """The HTTP status of a refusal."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _client_of(session: Any) -> Any:
    config = ClientConfig(
        # The default (CRT) ignores the endpoint; chunks are verified by us, and other servers refuse the default
        # checksums over HTTPS.
        s3={"preferred_transfer_client": "classic", "payload_signing_enabled": True},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=2 * NUM_THREADS,
    )
    client = session.client("s3", region_name=session.region_name or DEFAULT_REGION, config=config)
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register_first(f"choose-signer.s3.{operation}", _signature)
    client.meta.events.register_last("before-call.s3", _send_at_once)
    return client


def _send_at_once(params: dict[str, Any], **_: Any) -> None:
    """Leave out what botocore adds for files, that the server is to be asked first whether it would take them."""
    params["headers"].pop("Expect", None)


def _signature(signature_version: str, **_: Any) -> str | None:
    return SIGNATURE if signature_version in ("v4", "s3v4") else None
