"""Pure steps of Langevin dynamics, and the default sampler of a GEBM."""
