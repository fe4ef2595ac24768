"""What a task may name: only what lies inside the sources, whatever its path or address is made of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hzzray.urls import Fence, absolute, is_inside, join, led_by

WEB = ("https://host/base/?sig=abc", "root://eos//open/data")


@pytest.mark.parametrize(
    "location",
    [
        "https://host/base/MC/a.root?sig=abc",
        "https://host/base/MC/a.root?sig=another",  # the path is what it lies at
        "https://host/base/MC/a.root",
        "https://host/base/a%20b%25.root?sig=abc",
        "https://host/base/a..b/c.root",
        "root://eos//open/data/MC/a b.root?authz=token",
    ],
)
def test_addresses_inside_whatever_their_query(location):
    """Issue 11, item 18: a signature or a token travels in the query."""
    assert is_inside(location, WEB)


@pytest.mark.parametrize(
    "location",
    [
        "https://host/other/a.root?sig=abc",
        "https://host/base?sig=abc",
        "https://host/based/a.root",
        "https://other/base/a.root?sig=abc",
        "https://host:8443/base/a.root",
        "http://host/base/a.root",
        "https://user:password@host/base/a.root",
        "https://host@other/base/a.root",
        "https://other/?https://host/base/a.root",
        "https://other#https://host/base/a.root",
        "https://host/?/base/a.root",
        "https://host\\@other/base/a.root",
        "https://host/base/../secret.root",
        "https://host/base/%2e%2e/secret.root",
        "https://host/base/%2E./secret.root",
        "https://host/base/%252e%252e/secret.root",
        "https://host/base/..%2fsecret.root",
        "https://host/base/..\\secret.root",
        "https://host/base/%" + "25" * 9 + "2e%" + "25" * 9 + "2e/x",
        "https://host/base/a.root\x00",
        "https://host/base/a\r\nHost: other\r\n.root",
        "https://[host/base/a.root",
        "https:///base/a.root",
        "root://eos//open/../secret.root",
        "root://eos//open/database/a.root",
        "file:///etc/passwd",
        "://",
    ],
)
def test_addresses_outside(location):
    """Issue 11, item 18: no task from the wire chooses another host or path."""
    assert not is_inside(location, WEB)


def test_a_source_that_is_a_whole_host():
    """Issue 11, item 18: ``http://host?sig=…`` plans and is read."""
    for source in ("http://host?sig=a", "http://host/?sig=a", "http://host"):
        assert is_inside(join(source, "MC/a.root"), [source])
        assert not is_inside("http://hostile/MC/a.root", [source])


def test_a_folder_is_told_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("toy") == str(tmp_path / "toy")
    assert join("toy", "MC/a.root") == str(tmp_path / "toy/MC/a.root")
    assert absolute("~/toy") == str(Path.home() / "toy")
    assert absolute("https://host/toy?sig=a") == "https://host/toy?sig=a"


def test_a_query_stays_at_the_end_of_every_kind_of_address():
    """Issue 11, item 18."""
    assert join("root://eos//open/?authz=t", "MC/a.root") == "root://eos//open/MC/a.root?authz=t"
    assert join("https://host?sig=a/b", "MC/a.root") == "https://host/MC/a.root?sig=a/b"


@pytest.mark.parametrize("location", ["a\x00b.root", "\x00", "x" * 5000, "a/" * 3000, "\ud800.root", "ring/a.root"])
def test_what_can_be_no_path_is_inside_of_nothing(tmp_path, location):
    """Issue 11, item 35, as far as it is here: no ValueError, whatever a message holds."""
    (tmp_path / "ring").symlink_to("ring")
    assert is_inside(f"{tmp_path}/{location}", [f"{tmp_path}\x00", "/nowhere"]) is False
    assert is_inside(location, ["/nowhere", "https://host/"]) is False
    assert isinstance(led_by(f"{tmp_path}/{location}"), str)


def test_links_are_followed_before_it_is_judged(tmp_path):
    """Issue 11, item 17: a link is named with what it leads to."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.root").write_text("")
    (inside / "file.root").symlink_to(outside / "a.root")
    (inside / "folder").symlink_to("../outside")
    (inside / "own.root").symlink_to("a.root")
    assert is_inside(str(inside / "own.root"), [str(inside)])
    for name, link, target in (
        ("file.root", "file.root", outside / "a.root"),
        ("folder/a.root", "folder", "../outside"),
    ):
        assert not is_inside(str(inside / name), [str(inside)])
        assert is_inside(str(inside / name), [str(inside), str(outside / "a.root")])
        assert led_by(str(inside / name)) == f"{inside / link} is a link to {target}"
    assert led_by(str(inside / "a.root")) == ""
    (tmp_path / "door").symlink_to(inside)
    assert is_inside(str(tmp_path / "door" / "a.root"), [str(tmp_path / "door")])
    assert is_inside(os.path.relpath(inside / "a.root"), [str(inside)])


def test_a_fence_follows_a_folders_links_once_and_each_files_own(tmp_path):
    """Issue 16: of many files in a folder, each had its whole path followed."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.root").write_text("")
        (folder / "b.root").write_text("")
    (tmp_path / "door").symlink_to(inside)
    fence = Fence([str(inside)])
    assert fence.holds(f"{tmp_path}/door/a.root")
    assert fence.holds(f"{tmp_path}/outside/../door/b.root")
    assert not fence.holds(f"{tmp_path}/door/../inside/../outside/b.root")
    (inside / "b.root").unlink()
    (inside / "b.root").symlink_to(outside / "b.root")
    assert not fence.holds(f"{tmp_path}/door/b.root")
    assert not fence.holds(f"{tmp_path}/outside/a.root")
    assert not fence.holds(f"{tmp_path}/door/nowhere/../../outside/a.root")
    (tmp_path / "door").unlink()
    (tmp_path / "door").symlink_to(outside)
    assert not Fence([str(inside)]).holds(f"{tmp_path}/door/a.root")
