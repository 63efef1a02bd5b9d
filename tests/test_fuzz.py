"""Wrong arguments of public constructors and functions are refused by name: see `fuzz`, which makes more calls."""

import hosts
import pytest
from fuzz import fuzz


@pytest.mark.slow
@pytest.mark.parametrize("name", hosts.HOSTS)
def test_wrong_arguments_are_refused_by_name(name):
    if absent := hosts.missing(name):
        pytest.skip(f"needs {', '.join(absent)}")
    counts, bad = fuzz(hosts.get(name), 600, seed=1)
    assert counts["hung"] == 0 and counts["unnamed"] < 0.01 * sum(counts.values()), "\n".join(bad)
    assert counts["named"] > 400 and counts["returned"] > 10
