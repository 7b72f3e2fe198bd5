"""What a server can do, for tests that do not try it."""

from tasks.storage.s3_abilities import Abilities

ABLE = Abilities(
    endpoint="http://somewhere",
    server="a server",
    found="2026-01-01T00:00:00+00:00",
    conditional_create=True,
    conditional_replace="quoted",
    checks_content=True,
    lists_uploads=True,
)
