"""The whole log of an attempt that did not succeed, in the store: logs/<stage>/<key>/<time>.txt."""

import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

from tasks.storage.stores import Store

PATIENCE_S = 5.0
MOST_BYTES = 64 * 2**20

logger = logging.getLogger(__name__)


def publish_log(store: Store, stage: str, key: str, log: Path) -> str | None:
    """The address of the copy; None if there is no log, or the store did not take it in PATIENCE_S.

    Of a log larger than MOST_BYTES the end.
    """
    if not log.is_file():
        return None
    name = f"logs/{stage}/{key}/{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%f}.txt"
    taken = threading.Event()

    def send() -> None:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - MOST_BYTES))
            store.write(name, file.read())
        taken.set()

    threading.Thread(target=send, name="log", daemon=True).start()
    if not taken.wait(PATIENCE_S):
        logger.warning("%s: its log was not published; it is at %s", stage, log)
        return None
    return f"{store.uri}/{name}"
