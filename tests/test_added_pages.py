"""Pages made from a run's files: what they say is what the files hold."""

import json
import re

from minddiff_utils.book import pages


def test_costs_are_those_of_the_records(tmp_path):
    for subject, factor in (("anna", 1), ("ben", 10)):
        (tmp_path / subject).mkdir()
        times = {"02_second": 65.4 * factor, "01_first": 3599.0 * factor}
        known = {name: {"wall_time_s": took} for name, took in times.items()}
        record = {"machine": f"{factor} cores", "notebooks": known}
        (tmp_path / subject / "provenance.json").write_text(json.dumps(record))
    text = pages.cost_table(tmp_path, ["anna", "ben", "nobody"])
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines()]
    assert rows[:1] + rows[2:] == [
        ["chapter", "anna", "ben"],
        ["machine", "1 cores", "10 cores"],
        ["`01_first`", "0:59:59", "9:59:50"],
        ["`02_second`", "0:01:05", "0:10:54"],
        ["**all chapters**", "**1:01:04**", "**10:10:44**"],
    ]
    assert pages.cost_table(tmp_path, ["nobody"]) == ""
