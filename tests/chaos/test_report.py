"""The page says what was done, and every violation."""

from tests.chaos.report import as_markdown

PART = {"seconds": 61.4, "skipped": None, "violations": []}
KILLS = PART | {
    "part": "kills",
    "violations": ["chain 1-0: the last weights are others"],
    "figures": {
        "kills": 3,
        "targets": [["rank", "SIGKILL", 2], ["s3 server", "SIGTERM", 1]],
        "stages": {"sft": 3},
        "launches": {"flow": 3},
        "slowest_end_s": 1.26,
        "chains": [{}],
    },
}
TALLY = {"server": "swift", "tls": True, "requests": 50, "published": 4, "fetched": 5, "given_up": ["x"]}
FAULTS = PART | {
    "part": "faults",
    "figures": {"transfers": [TALLY | {"faults": {"503 SlowDown": 7, "reset": 4}, "violations": []}]},
}
SKIPPED = PART | {"part": "disk", "skipped": "mounting a small tmpfs needs root", "figures": {}}


def test_the_page_holds_the_seed_the_counts_and_the_violations() -> None:
    measured = {
        "command": "c",
        "provenance": "Commit x.",
        "seed": 17,
        "seconds": 100.2,
        "parts": [KILLS, FAULTS, SKIPPED],
    }
    page = as_markdown([measured])
    assert "`c`: seed 17, 100 s." in page
    assert "3 kills over 1 chains; the last process ended 1.3 s after its kill" in page
    assert "11 of 50 requests met a fault" in page
    assert "| rank | SIGKILL | 2 |" in page
    assert "| flow | 3 |" in page
    assert "not done: mounting a small tmpfs needs root" in page
    assert "- violated: chain 1-0: the last weights are others" in page
    [heads] = [line for line in page.splitlines() if line.startswith("| fault ")]
    assert "swift, TLS" in heads
