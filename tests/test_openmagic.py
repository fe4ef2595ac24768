"""The real client library against a stand-in for its metadata server.

The server is the one part that tests can't have: it is on the internet. The stand-in speaks its protocol over
real HTTP (``/datasets/count`` and paged ``/datasets``, with the fields and root:// URLs of the library's own
tests), so everything on this side of the wire is the library's code.
"""

import http.server
import json
import sys
import threading
from urllib.parse import parse_qs, urlsplit

import pytest

from hzzray.data.catalogue import Release, release
from hzzray.data.openmagic import openmagic_release
from hzzray.errors import DataError, TransientError, UsageError

atom = pytest.importorskip("atlasopenmagic", reason="the extra atlasopenmagic isn't installed")
requests = pytest.importorskip("requests")

HOST = "root://eospublic.cern.ch:1094//"
FOLDER = "eos/opendata/atlas/rucio/moved/"
HIGGS, ZZ = 345060, 700600


def dataset(number, *files, skim="exactly4lep", **facts):
    """A row of the server's answer."""
    skims = [{"id": 1, "skim_type": skim, "file_list": list(files), "dataset_number": str(number)}]
    return {
        "dataset_number": str(number),
        "physics_short": None if number == "data" else f"process_{number}",
        "cross_section_pb": 2.0,
        "genFiltEff": 0.5,
        "kFactor": 1.2,
        "nEvents": 1000,
        "sumOfWeights": 4000.0,
        "file_list": [],
        "skims": skims,
        "release": {"name": "2025e-13tev-beta"},
        **facts,
    }


def url(name, folder=FOLDER):
    return f"{HOST}{folder}{name}"


ROWS = [
    dataset("data", url("v2/data15_periodD.new.root"), url("v2/data16_periodL.new.root")),
    dataset(HIGGS, url("mc/345060.new.root")),
    dataset(ZZ, url("mc/700600.new.root")),
    dataset(700601, url("mc/700601.other.root"), skim="3lep"),
    dataset(999999, url("mc/999999.root"), url("mc/999999b.root")),
]


class Metadata(http.server.ThreadingHTTPServer):
    """Answers as the metadata server does."""

    def __init__(self, rows):
        super().__init__(("127.0.0.1", 0), Handler)
        self.rows = rows
        self.status = 200
        self.asked = []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.server.asked.append(parts.path)
        rows = [row for row in self.server.rows if row["release"]["name"] == query.get("release_name")]
        skip, limit = int(query.get("skip", 0)), int(query.get("limit", 100))
        answers = {"/datasets/count": {"count": len(rows)}, "/datasets": rows[skip : skip + limit]}
        body = json.dumps(answers.get(parts.path, [])).encode()
        self.send_response(self.server.status if parts.path in answers else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    library = atom.metadata
    with Metadata(ROWS) as metadata, requests.Session() as session:
        thread = threading.Thread(target=metadata.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setattr(library, "API_BASE_URL", f"http://127.0.0.1:{metadata.server_port}")
        monkeypatch.setattr(library, "_session", session)  # the library's own waits seconds between retries
        monkeypatch.setattr(library, "current_release", "none yet")
        library.empty_metadata()
        yield metadata
        library.empty_metadata()
        metadata.shutdown()
        thread.join()


def names(base, *dsids):
    return [sample.name for sample in base.samples if sample.dsid in dsids]


def test_paths_and_sources_are_the_librarys(server):
    base = release("2025")
    found = openmagic_release(base)
    assert isinstance(found, Release)
    assert found.sources == (
        "https://opendata.cern.ch/eos/opendata/atlas/rucio/moved/",
        "root://eospublic.cern.ch//eos/opendata/atlas/rucio/moved/",
        *base.sources,
    )
    (higgs,) = names(base, HIGGS)
    assert found.sample(higgs).path == "mc/345060.new.root"
    assert found.sample("data15_periodD").path == "v2/data15_periodD.new.root"
    assert found.sample("data16_periodL").path == "v2/data16_periodL.new.root"


def test_all_else_is_the_catalogues(server):
    base = release("2025")
    found = openmagic_release(base)
    known = {"data15_periodD", "data16_periodL", *names(base, HIGGS, ZZ)}
    assert [sample.name for sample in found.samples] == [sample.name for sample in base.samples]
    for old, new in zip(base.samples, found.samples, strict=True):
        if old.name in known:
            assert new == old.model_copy(update={"path": new.path})
        else:
            assert new == old
    unchanged = {"samples": base.samples, "sources": base.sources}
    assert found.model_copy(update=unchanged) == base


def test_files_that_carry_their_normalisation_get_no_second_one(server):
    base = release("2025")
    found = openmagic_release(base)
    (higgs,) = names(base, HIGGS)
    assert found.normalisation(found.sample(higgs), 36.6) == pytest.approx(36_600.0)


def test_normalisation_where_the_files_have_none(server):
    base = release("2020")
    (higgs,) = names(base, HIGGS)
    found = openmagic_release(base.only((higgs, "Zee")))
    assert found.sample(higgs).xsec == pytest.approx(2.0 * 1.2 * 0.5)
    assert found.sample(higgs).sumw == 4000.0
    assert found.sample("Zee") == base.sample("Zee")


def test_files_of_the_known_place_keep_their_paths(server):
    """What the catalogue says today and what the library says agree: one set of sources, unchanged."""
    base = release("2025")
    rows = [
        dataset(sample.dsid, url(sample.path, "eos/opendata/atlas/rucio/opendata/"))
        for sample in base.samples
        if sample.dsid
    ]
    server.rows = rows
    assert openmagic_release(base) == base


def test_metadata_from_a_file_needs_no_server(server, tmp_path):
    base = release("2025")
    online = openmagic_release(base)
    atom.save_metadata(str(tmp_path / "metadata.json"))
    atom.metadata.empty_metadata()
    server.asked.clear()
    assert openmagic_release(base, metadata=tmp_path / "metadata.json") == online
    assert not server.asked


def test_no_metadata_file(server, tmp_path):
    with pytest.raises(UsageError, match=r"metadata .*none\.json: No such file"):
        openmagic_release(release("2025"), metadata=tmp_path / "none.json")


def test_metadata_file_of_another_kind(server, tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UsageError, match="atlasopenmagic: Did not get expected dictionary"):
        openmagic_release(release("2025"), metadata=tmp_path / "list.json")


def test_unknown_release(server):
    with pytest.raises(UsageError, match="Invalid release '1999'"):
        openmagic_release(release("2025"), "1999")


def test_unknown_skim(server):
    with pytest.raises(UsageError, match="none of release 2025's samples as 5lep"):
        openmagic_release(release("2025"), skim="5lep")


def test_a_dataset_of_several_files_is_a_sample_of_as_many(server):
    """As they come: of simulation by number, of data by period; one that is alone stays plain text."""
    base = release("2025")
    server.rows = [
        dataset(
            "data", url("v2/data15_periodD.2.root"), url("v2/data16_periodL.root"), url("v2/data15_periodD.1.root")
        ),
        dataset(HIGGS, url("mc/b.root"), url("mc/a.root")),
        dataset(ZZ, url("mc/700600.root")),
    ]
    found = openmagic_release(base)
    (higgs,) = names(base, HIGGS)
    (zz,) = names(base, ZZ)
    assert found.sample(higgs).path == ("mc/b.root", "mc/a.root")
    assert found.sample("data15_periodD").path == ("v2/data15_periodD.2.root", "v2/data15_periodD.1.root")
    assert found.sample("data16_periodL").path == "v2/data16_periodL.root"
    assert found.sample(zz).path == "mc/700600.root"
    assert found.sources[0].endswith("/rucio/moved/")


def test_files_on_two_servers(server):
    server.rows = [dataset(HIGGS, url("a.root")), dataset(ZZ, "root://elsewhere.org//a.root")]
    with pytest.raises(DataError, match="lie on 2 servers"):
        openmagic_release(release("2025"))


def test_server_out_of_order(server):
    server.status = 503
    with pytest.raises(TransientError, match="metadata server failed: 503") as failure:
        openmagic_release(release("2025"))
    assert "\n" not in str(failure.value)


def test_server_unreachable_then_back(server, monkeypatch):
    with monkeypatch.context() as away:
        away.setattr(atom.metadata, "API_BASE_URL", "http://127.0.0.1:9")
        with pytest.raises(TransientError, match="metadata server failed"):
            openmagic_release(release("2025"))
    assert openmagic_release(release("2025")).sources != release("2025").sources


def test_library_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "atlasopenmagic", None)
    with pytest.raises(UsageError, match=r"pip install 'hzzray\[openmagic\]'"):
        openmagic_release(release("2025"))
