"""The ATLAS Open Data H→ZZ*→4ℓ analysis as an exact, distributed pipeline."""

__version__ = "0.2.0"
