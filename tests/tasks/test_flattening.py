from tasks.flattening import flattened, short_facts


def test_short_facts_leave_out_lists_and_long_texts() -> None:
    report = {"a": 1, "b": {"c": 0.5, "d": "x" * 201}, "e": [1], "f": None, "g": "short"}

    assert short_facts(report) == {"a": 1, "b.c": 0.5, "g": "short"}


def test_values_get_dotted_names_and_empty_groups_stay() -> None:
    assert flattened({"a": {"b": {"c": 1}, "d": {}}, "e": [2]}) == {"a.b.c": 1, "a.d": {}, "e": [2]}
