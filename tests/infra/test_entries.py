"""pipelines.yaml, and what is refused in such a file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.entries import read_entries
from tasks.errors import InputError

PROJECT = Path(__file__).resolve().parent.parent.parent


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "name": "one",
        "tags": ["alignment"],
        "entrypoint": "flows/alignment.py:alignment",
        "work_pool": {"name": "alignment"},
        "parameters": {
            "pipeline": {
                "model": "org/name",
                "prepare_data": {"sft": {"path": "sft.jsonl"}, "preferences": {"path": "preferences.jsonl"}},
            }
        },
    } | changes


def written(tmp_path: Path, *entries: dict[str, Any]) -> Path:
    path = tmp_path / "pipelines.yaml"
    path.write_text(yaml.safe_dump({"name": "alignment", "deployments": list(entries)}))
    return path


def test_the_projects_own_file_holds_four_entries_and_each_is_valid() -> None:
    entries = read_entries(PROJECT / "pipelines.yaml")
    assert sorted(entries) == ["demo", "nightly", "ppo", "rlvr"]
    for one in entries.values():
        assert one.entrypoint == "flows/alignment.py:alignment"
        assert one.parameters.resolved().accelerate_config.startswith("infra/accelerate/")
    assert entries["nightly"].schedules[0].cron == "0 2 * * *"
    assert entries["nightly"].schedules[0].timezone == "Europe/Berlin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paramters": {}}, "paramters: Extra inputs are not permitted"),
        ({"tags": []}, "must contain 'alignment'"),
        ({"schedules": [{"slug": "a", "cron": "0 2 * * *", "interval": 3.0}]}, "exactly one of cron, interval, rrule"),
        ({"schedules": [{"cron": "0 2 * * *"}]}, "schedules.0.slug: Field required"),
        ({"parameters": {"pipeline": {"prepare_data": {}, "ppo": {"kl_koef": 1}}}}, "kl_koef: Extra inputs"),
        ({"concurrency_limit": {"limit": 0}}, "concurrency_limit.limit"),
        ({"work_pool": {"name": "alignment", "job_varibles": {}}}, "job_varibles"),
        (
            {"work_pool": {"name": "a", "job_variables": {"env": {"KEY": "{{ prefect.blocks.secret.key }}"}}}},
            r"work_pool.job_variables: .*must not name a block",
        ),
    ],
)
def test_a_wrong_entry_is_refused_naming_the_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_entries(written(tmp_path, entry(**change)))


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="twice: one"):
        read_entries(written(tmp_path, entry(), entry()))


def test_an_override_in_the_file_is_checked_too(tmp_path: Path) -> None:
    parameters = entry()["parameters"] | {"overrides": {"ppo.kl_koef": 1}}
    with pytest.raises(InputError, match=r"entry one: overrides: 'ppo.kl_koef' is no option"):
        read_entries(written(tmp_path, entry(parameters=parameters)))


def test_a_missing_file_and_broken_yaml_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.yaml does not exist"):
        read_entries(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("deployments: [")
    with pytest.raises(InputError, match="is not YAML"):
        read_entries(tmp_path / "broken.yaml")
