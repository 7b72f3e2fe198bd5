"""A run's page in the store, beside the run's record."""

from dataclasses import dataclass

from tasks.errors import InputError
from tasks.report.facts import gather
from tasks.report.figures import headline
from tasks.report.page import run_page
from tasks.retention.runs import RunRecord, read_record
from tasks.storage.stores import Store


@dataclass(frozen=True)
class Page:
    """A page in the store: its address, and the verdict that it begins with."""

    uri: str
    verdict: str


def make_page(store: Store, record: RunRecord) -> str:
    """The page of that run as it is now."""
    return run_page(gather(store, record), store.uri)


def publish_page(store: Store, name: str) -> Page:
    """Make the page of the run whose record has that name in the store, and keep it there."""
    record = read_record(store.read(name))
    if record is None:
        raise InputError(f"{store.uri}/{name} is no run's record of this version. Name the record of a run.")
    store.write(record.page_name, make_page(store, record).encode())
    told = headline(record)
    return Page(f"{store.uri}/{record.page_name}", " ".join([f"{told.word}.", *told.sentences]))
