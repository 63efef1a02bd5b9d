"""What is here is read by the type checker, not run."""

collect_ignore_glob = ["*.py"]
