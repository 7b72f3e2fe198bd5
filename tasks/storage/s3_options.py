"""What may be set for S3 beside the usual AWS variables: environment variables that begin with ALIGNMENT_S3_."""

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from tasks.config import Config
from tasks.errors import InputError

VARIABLES = "ALIGNMENT_S3_"


class S3Options(Config):
    """One field per variable: ALIGNMENT_S3_DEADLINE_S is deadline_s."""

    deadline_s: float = Field(300.0, ge=0, le=1800)
    """Seconds for which a request that fails is repeated before the stage gives up; a server may restart meanwhile.
    Claims on what a run uses, see tasks/retention/claims.py, outlast no longer ones."""
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    """Encryption at rest that is asked for with every object; none: what the bucket does by itself."""
    sse_kms_key_id: str | None = None
    """Key of the KMS for sse aws:kms; none: the bucket's or the account's own."""
    bucket_owner: str | None = Field(None, pattern=r"^\d{12}$")
    """Account that must own the bucket, 12 digits: each request is refused where another does."""

    @model_validator(mode="after")
    def _key_has_a_use(self) -> "S3Options":
        if self.sse_kms_key_id and not (self.sse or "").startswith("aws:kms"):
            raise ValueError(f"{VARIABLES}SSE_KMS_KEY_ID is set, but {VARIABLES}SSE is not aws:kms. Set both or none.")
        return self

    @property
    def for_new_objects(self) -> dict[str, str]:
        """Arguments of the operations that make an object."""
        named = {"ServerSideEncryption": self.sse, "SSEKMSKeyId": self.sse_kms_key_id}
        return {name: value for name, value in named.items() if value}

    @property
    def for_every_request(self) -> dict[str, str]:
        """Arguments of every operation on the bucket or in it."""
        return {"ExpectedBucketOwner": self.bucket_owner} if self.bucket_owner else {}


def options_from(environment: Mapping[str, str] = os.environ) -> S3Options:
    """The options that the environment sets; an empty variable sets nothing. Raises InputError naming the variable."""
    given = {
        name.removeprefix(VARIABLES).lower(): value
        for name, value in environment.items()
        if name.startswith(VARIABLES) and value
    }
    try:
        return S3Options.model_validate(given)
    except ValidationError as error:
        raise InputError(
            "\n".join(_complaint(found["loc"], found["msg"], given) for found in error.errors())
        ) from error


def _complaint(place: tuple[int | str, ...], message: str, given: Mapping[str, str]) -> str:
    if not place:
        return message.removeprefix("Value error, ")
    field = str(place[0])
    if field not in S3Options.model_fields:
        known = ", ".join(VARIABLES + name.upper() for name in S3Options.model_fields)
        return f"There is no {VARIABLES}{field.upper()}; there are {known}."
    return f"{VARIABLES}{field.upper()} is {given[field]!r}. {message}."
