"""The page of a run: what it says, that it needs nothing beside itself, and that everybody can read it."""

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tasks.artifacts import Store, store_at
from tasks.report.publishing import make_page
from tasks.rules import Verdict
from tests.tasks.report.made_run import FAILED, PASSED, make_run

SCRIPT = "<script>alert('x')</script>"


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and its text without what is in style elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._within = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_at(f"file://{tmp_path}/store")


def heading(page: str) -> str:
    [found] = re.findall(r"<h1>(.*?)</h1>", page)
    return str(found)


def test_an_exported_model_has_its_verdict_and_figures_first(store: Store, tmp_path: Path) -> None:
    page = make_page(store, make_run(store, tmp_path))
    assert heading(page) == "Exported"
    text = Parsed(page).text
    assert "is the champion of nightly. It passed 1 rules of the gate." in text
    assert "PPO's answer beats SFT's on 75.0% of 200 held-out prompts (95 % interval 70.0% to 80.0%)" in text
    for figure in ("Win rate over the champion 52.0%", "Score, SFT → PPO -0.50 → 1.25", "Alignment tax +3.1%"):
        assert figure in text
    assert text.index("Exported") < text.index("Gate") < text.index("Time and memory")


def test_a_refused_model_is_told_with_the_rules_that_failed(store: Store, tmp_path: Path) -> None:
    record = make_run(store, tmp_path, ("export",), state="failed", verdicts=[PASSED, FAILED], error="refused")
    page = make_page(store, record)
    assert heading(page) == "Refused by the gate"
    before_the_figures = Parsed(page.partition('<dl class="tiles">')[0]).text
    assert "The model failed 1 of 2 rules. Nothing was exported" in before_the_figures
    assert "champion_win_rate_low is 0.48, has to be ≥ 0.49" in before_the_figures


def test_a_reward_model_that_fails_its_certificate_is_the_verdict(store: Store, tmp_path: Path) -> None:
    verdict = Verdict(measures="ece", demand="≤ 0.1", measured=0.2, verdict="failed")
    told = {"state": "failed", "certificate": [PASSED, verdict], "verdicts": [], "figures": {}, "error": "refused"}
    page = make_page(store, make_run(store, tmp_path, ("ppo", "evaluate", "export"), **told))
    assert heading(page) == "Refused by the certificate"
    before_the_figures = Parsed(page.partition('<dl class="tiles">')[0]).text
    assert "The reward model failed 1 of 2 thresholds. PPO was not started" in before_the_figures
    assert "ece is 0.2, has to be ≤ 0.1" in before_the_figures


def test_a_second_reward_model_is_told_apart_from_the_first(store: Store, tmp_path: Path) -> None:
    page = make_page(store, make_run(store, tmp_path, second=True))
    assert [name for name in re.findall(r"<h2 [^>]*>(.*?)</h2>", page) if "eward model" in name] == [
        "The reward model's certificate",
        "Reward model",
        "Second reward model",
    ]
    text = Parsed(page).text
    assert "Reward model's pair accuracy 87.5%" in text
    assert "second_reward_model 1 min 23 s" in text


def test_a_run_that_failed_shows_how_far_it_came(store: Store, tmp_path: Path) -> None:
    later = ("ppo", "evaluate", "export", "certify")
    record = make_run(store, tmp_path, later, state="failed", verdicts=[], figures={}, error="ppo: no memory\nat all")
    page = make_page(store, record)
    assert heading(page) == "Failed"
    text = Parsed(page).text
    assert "ppo: no memory It came as far as the stage reward_model." in text
    assert "ppo: no memory at all" in text
    assert [section for section in ("Gate", "Evaluation", "Canaries") if f">{section}</h2>" in page] == []
    assert "SFT loss, held out 1.375" in text


def test_a_run_without_any_stage_has_a_page(store: Store) -> None:
    record = make_run(store, Path(), tuple(made_stages()), state="running", ended=None, verdicts=[], figures={})
    page = make_page(store, record)
    assert heading(page) == "Not ended"
    assert "The run is under way, or was killed, after no stage." in page


def made_stages() -> list[str]:
    return ["prepare_data", "sft", "reward_model", "certify", "ppo", "evaluate", "export"]


def test_what_models_say_is_text(store: Store, tmp_path: Path) -> None:
    said = {name: f"{SCRIPT} {name}" for name in ("prompt", "before", "champion", "after")}
    changed = {"sample": said, "config": {"note": SCRIPT}, "overrides": {"a": SCRIPT}, "options": {"b": SCRIPT}}
    told = {"error": SCRIPT, "pipeline": SCRIPT, "state": "failed", "verdicts": [], **changed}
    page = make_page(store, make_run(store, tmp_path, **told))
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 12


def test_the_page_needs_nothing_beside_itself(store: Store, tmp_path: Path) -> None:
    page = make_page(store, make_run(store, tmp_path))
    parsed = Parsed(page)
    assert parsed.all("link", "script", "iframe", "object") == []
    sources = [each.get("src") or "" for each in parsed.all("img")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    addresses = [each[name] or "" for _, each in parsed.elements for name in ("href", "xlink:href") if name in each]
    assert len(addresses) >= 8
    assert [address for address in addresses if not address.startswith("#")] == []
    assert re.findall(r"@import|url\((?!#)", page) == []
    [policy] = [each["content"] for each in parsed.all("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_headings_tables_and_pictures_say_what_they_are(store: Store, tmp_path: Path) -> None:
    parsed = Parsed(make_page(store, make_run(store, tmp_path)))
    levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert [(above, below) for above, below in itertools.pairwise(levels) if below > above + 1] == []
    assert all(each.get("scope") for each in parsed.all("th"))
    assert all(each.get("alt") for each in parsed.all("img"))
    pictures = parsed.all("svg")
    assert len(pictures) == 6  # SFT 1, reward model 2, PPO 2, lineage
    assert all(each.get("role") == "img" and each.get("aria-label") for each in pictures)
    anchors = {each["href"] for each in parsed.all("a")}
    assert anchors == {f"#{each['id']}" for each in parsed.all("section")}


def test_the_certificate_is_shown_where_there_is_one(store: Store, tmp_path: Path) -> None:
    text = Parsed(make_page(store, make_run(store, tmp_path))).text
    assert "no threshold failed. What the reward model had to prove" in text
    assert "accepted ece the config accepts it ≤ 0.1 0.2" in text
    without = make_page(store, make_run(store, tmp_path / "without", ("certify",)))
    assert "certificate-head" in make_page(store, make_run(store, tmp_path / "again"))
    assert 'id="certificate' not in without
    assert 'href="#certificate' not in without


def test_the_guards_rewinds_are_told_even_where_a_number_was_none(store: Store, tmp_path: Path) -> None:
    alarms = [{"name": "kl", "value": 31.25, "limit": 20.0}, {"name": "value_loss", "value": "nan", "limit": "nan"}]
    rewinds = [{"iteration": 9, "to_iteration": 6, "alarms": alarms}]
    text = Parsed(make_page(store, make_run(store, tmp_path, ppo={"rewinds": rewinds}))).text
    assert "The guard sent this training back 1 times" in text
    assert "at iteration 9 to 6, for kl (31.25), value_loss (nan)" in text


def test_time_and_memory_are_those_of_the_attempt_that_made_the_artifact(store: Store, tmp_path: Path) -> None:
    text = Parsed(make_page(store, make_run(store, tmp_path))).text
    assert "sft 1 min 23 s 1.50 GiB was done already reward_model 1 min 23 s 1.50 GiB computed" in text
    assert "1 h 1 min" in text


def test_the_options_that_differ_are_shown_and_the_whole_pipeline(store: Store, tmp_path: Path) -> None:
    record = make_run(
        store, tmp_path, config={"learning_rate": 0.125, "note": ""}, overrides={"seed": 3, "model": None}
    )
    text = Parsed(make_page(store, record)).text
    assert "learning_rate 0.125" in text
    assert 'note ""' in text
    assert "Option Value seed 3" in text
    assert "ppo: kl_coef: 0.1" in text


def test_a_run_of_a_store_that_moved_is_told_from_where_it_is_now(store: Store, tmp_path: Path) -> None:
    record = make_run(store, tmp_path)
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    text = Parsed(make_page(store_at(f"file://{tmp_path}/elsewhere"), record)).text
    assert "gone" not in text
    assert "Reward model's pair accuracy 87.5%" in text


def test_an_artifact_that_was_swept_is_told_as_gone(store: Store, tmp_path: Path) -> None:
    record = make_run(store, tmp_path)
    [manifest] = [file.name for file in store.files("artifacts/reward_model/") if file.name.endswith("manifest.json")]
    store.delete([manifest])
    page = make_page(store, record)
    text = Parsed(page).text
    assert "gone" in text
    assert ">Reward model</h2>" not in page
    assert ">SFT</h2>" in page
