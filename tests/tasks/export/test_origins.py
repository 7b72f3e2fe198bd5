import hashlib

import pytest

from tasks.errors import InputError
from tasks.export.config import ExportConfig
from tasks.export.origins import DataFile, read_origins
from tasks.prepare_data.config import PrepareDataConfig

CARD = "---\nlicense: {license}\ntags: [x]\n---\n# A base\n"


def folder_with_card(folder, license):
    folder.mkdir()
    (folder / "README.md").write_text(CARD.format(license=license))
    return folder


def test_the_licence_is_the_one_of_the_bases_card(tmp_path):
    inputs = {"base": folder_with_card(tmp_path / "base", "apache-2.0"), "model": tmp_path}

    found = read_origins(ExportConfig(), inputs, {})

    assert (found.license, found.license_source) == ("apache-2.0", "the card of the base model")


def test_the_configs_licence_goes_before_the_bases(tmp_path):
    inputs = {"base": folder_with_card(tmp_path / "base", "apache-2.0")}

    assert read_origins(ExportConfig(license="mit"), inputs, {}).license == "mit"


def test_a_model_with_a_card_of_its_own_keeps_its_licence(tmp_path):
    assert read_origins(ExportConfig(), {"model": folder_with_card(tmp_path / "m", "gpl-3.0")}, {}).license == "gpl-3.0"


@pytest.mark.parametrize("license", ["unknown", "[a, b]", "Some Terms"])
def test_what_no_card_says_is_unknown(tmp_path, license):
    found = read_origins(ExportConfig(), {"base": folder_with_card(tmp_path / "base", license)}, {})

    assert (found.license, found.data_license, found.base_model) == ("unknown", "unknown", None)
    assert found.license_source.startswith("neither export.license nor")


def test_a_card_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("---\n- a list\n---\n")

    with pytest.raises(InputError, match=r"README\.md: its front matter cannot be read .* set export\.license"):
        read_origins(ExportConfig(), {"model": tmp_path}, {})


def test_base_and_data_sets_of_the_hub_are_named(tmp_path):
    data = PrepareDataConfig.model_validate(
        {
            "sft": {"path": "hf://org/answers@main"},
            "preferences": [{"path": "hf://org/pairs"}, {"path": "mine.jsonl"}],
            "prompts": {"path": "hf://org/answers"},
        }
    )
    lineage = {"base": {"uri": "hf://org/base@c0ffee"}, "data": {"config": data.model_dump(mode="json")}}

    found = read_origins(ExportConfig(data_license="ours"), {}, lineage)

    assert (found.base_model, found.data_license) == ("org/base", "ours")
    assert found.datasets == ("org/answers", "org/pairs")
    assert read_origins(ExportConfig(base_model="org/other"), {}, lineage).base_model == "org/other"


def test_every_file_of_the_data_is_hashed(tmp_path):
    (tmp_path / "sft_train.parquet").write_bytes(b"rows")
    (tmp_path / "report.json").write_text("{}")

    assert read_origins(ExportConfig(), {"data": tmp_path}, {}).data_files == (
        DataFile("sft_train.parquet", 4, hashlib.sha256(b"rows").hexdigest()),
    )
