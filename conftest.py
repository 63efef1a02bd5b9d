"""What needs a host that is not installed is not collected."""

import importlib.util

collect_ignore_glob = [
    pattern
    for host in ("numpyro", "pyro")
    if importlib.util.find_spec(host) is None
    for pattern in (f"{host}_gebm/*", f"tests/{host}_*")
]
