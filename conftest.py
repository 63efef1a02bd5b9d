"""What needs a host that is not installed is not collected."""

import importlib.util

collect_ignore = [
    path
    for host in ("numpyro", "pyro")
    if importlib.util.find_spec(host) is None
    for path in (f"{host}_gebm", f"tests/{host}_gebm")
]
