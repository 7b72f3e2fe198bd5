"""The picture of the lineage: rows in their order, and lines that run through nothing else."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tasks.artifacts import store_at
from tasks.report.facts import gather
from tasks.report.lineage import Row, in_words, picture, rows
from tests.tasks.report.made_run import make_run


def row(name: str, *inputs: int) -> Row:
    return Row(name, "", True, inputs)


def test_each_artifact_has_a_row_below_all_that_it_was_made_of(tmp_path: Path) -> None:
    store = store_at(f"file://{tmp_path}/store")
    found = rows(gather(store, make_run(store, tmp_path)))
    names = [each.name for each in found]
    assert names == ["prepare_data", "sft", "reward_model", "certify", "ppo", "champion", "evaluate", "export"]
    made_of = {each.name: [found[place].name for place in each.inputs] for each in found}
    assert made_of["evaluate"] == ["prepare_data", "sft", "reward_model", "ppo", "champion"]
    assert made_of["export"] == ["ppo", "evaluate"]
    assert [each.name for each in found if not each.made_here] == ["sft", "champion"]
    assert found[names.index("champion")].detail == "cccccccccccc · not made by this run"
    assert "export (model · " in in_words(found)
    assert in_words(found).endswith("made of ppo, evaluate")


def test_a_chain_is_one_lane_and_a_second_user_opens_another() -> None:
    drawn = picture([row("a"), row("b", 0), row("c", 1), row("d", 2)])
    assert len({node.x for node in drawn.nodes}) == 1
    drawn = picture([row("a"), row("b", 0), row("c", 0, 1)])
    assert [node.x for node in drawn.nodes] == [drawn.nodes[0].x, drawn.nodes[1].x, drawn.nodes[0].x]
    assert drawn.nodes[1].x > drawn.nodes[0].x


@given(st.data())
def test_no_lane_runs_through_another_artifact(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 9))
    found = [row(str(at), *sorted(data.draw(st.sets(st.integers(0, at - 1))) if at else ())) for at in range(size)]
    nodes = picture(found).nodes
    for at, each in enumerate(found):
        for start in each.inputs:
            between = [nodes[place].x for place in range(start + 1, at)]
            assert nodes[start].x not in between
