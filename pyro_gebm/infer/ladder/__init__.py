"""Samplers and estimates on the ladder of inverse temperatures from the base to the tilted law."""
