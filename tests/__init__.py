"""Tests of hzzray."""
