"""What `pyro_gebm` and `numpyro_gebm` share and needs neither framework: draws, diagnostics, files."""
