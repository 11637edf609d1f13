"""What a hub says: names, sizes and hashes as huggingface_hub reads them, and a next step for every refusal."""

from __future__ import annotations

import huggingface_hub
import pytest
from standin_hub import Fault, Hub

from localgemma import net
from localgemma.errors import AccessError, LocalgemmaError, NotFound, OfflineError, TransferError, UsageError
from localgemma.files.hub import Changed, RemoteFile, Resolved, list_files, read_range, resolve
from localgemma.files.refusal import Busy
from localgemma.options import TransferOptions

QUICK = TransferOptions(attempts=3, backoff=0.01, silence=0.5, patience=5)
MODEL, README = RemoteFile("owner/name", "main", "q/model-Q4_K_M.gguf"), RemoteFile("owner/name", "main", "README.md")
DATA = bytes(range(256)) * 2000


@pytest.fixture
def stocked(hub: Hub) -> Hub:
    """A hub with a large file and a small one."""
    hub.add("owner/name", MODEL.path, DATA)
    hub.add("owner/name", README.path, b"hello", lfs=False)
    return hub


@pytest.mark.parametrize("redirect", [True, False])
@pytest.mark.parametrize("xet", [True, False])
def test_a_file_is_what_huggingface_hub_says_it_is(stocked: Hub, redirect: bool, xet: bool) -> None:
    stocked.redirect, stocked.xet = redirect, xet
    api = huggingface_hub.HfApi(endpoint=stocked.url, token=False)
    info = api.model_info("owner/name", files_metadata=True)
    for remote in (MODEL, README):
        theirs = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url("owner/name", remote.path, endpoint=stocked.url), token=False
        )
        ours = resolve(remote)
        assert (ours.commit, ours.size, ours.etag) == (
            theirs.commit_hash,
            theirs.size,
            theirs.etag,
        ) and ours.commit == info.sha
    listed = list_files("owner/name")
    assert listed == (resolve(README), resolve(MODEL))
    assert [(each.remote.path, each.size) for each in listed] == [(s.rfilename, s.size) for s in info.siblings or ()]
    tree = {entry.path: entry for entry in api.list_repo_tree("owner/name", recursive=True)}
    assert listed[1].sha256 == tree[MODEL.path].lfs.sha256 and listed[0].sha256 is None  # type: ignore[union-attr]


def test_branches_tags_and_commits_are_revisions(stocked: Hub) -> None:
    stocked.add("owner/name", MODEL.path, b"other", revision="refs/pr/1")
    assert resolve(RemoteFile("owner/name", "refs/pr/1", MODEL.path)).size == 5
    main = resolve(MODEL)
    pinned = resolve(RemoteFile("owner/name", main.commit, MODEL.path))
    assert (pinned.commit, pinned.etag, pinned.url) == (main.commit, main.etag, main.url)
    assert [each.size for each in list_files("owner/name", "refs/pr/1")] == [5]


@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (100, 0), (77, 1000), (len(DATA) - 3, 100), (len(DATA), 5), (len(DATA) + 9, 5)]
)
@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_any_range_can_be_read(stocked: Hub, start: int, length: int, ranges: bool, known: bool) -> None:
    file: RemoteFile | Resolved = resolve(MODEL) if known else MODEL
    stocked.ranges = ranges
    assert read_range(file, start, length, options=QUICK) == DATA[start : start + length]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_range_goes_on_where_it_broke_off(stocked: Hub, ranges: bool) -> None:
    stocked.ranges = ranges
    stocked.fault(Fault("cut", at=2000), Fault("short", at=3000), Fault("status", status=503), Fault("hang", at=5000))
    assert read_range(MODEL, 1000, 20000, options=TransferOptions(attempts=6, backoff=0.01, silence=0.3)) == DATA[1000:21000]


def test_a_range_of_a_file_that_was_replaced_is_refused(stocked: Hub) -> None:
    file = resolve(MODEL)
    stocked.change("owner/name", MODEL.path, b"other" * 1000, same_commit=True)
    with pytest.raises(Changed):
        read_range(file, 0, 100, options=QUICK)
    stocked.redirect = False
    with pytest.raises(Changed):
        read_range(file, len(DATA) - 100, 100, options=QUICK)


# ------------------------------------------------------------------------------------------------------- refusals


def refused(remote: RemoteFile) -> LocalgemmaError:
    with pytest.raises(LocalgemmaError) as raised:
        resolve(remote, options=QUICK)
    return raised.value


def test_near_names_are_told(stocked: Hub) -> None:
    error = refused(RemoteFile("owner/name", "main", "model-Q4_K_S.gguf"))
    assert isinstance(error, NotFound) and error.hint == "Did you mean q/model-Q4_K_M.gguf?"
    assert stocked.url in refused(RemoteFile("owner/name", "main", "zzz")).hint


def test_what_is_not_there(stocked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no revision 'dev'" in str(refused(RemoteFile("owner/name", "dev", MODEL.path)))
    missing = RemoteFile("owner/none", "main", MODEL.path)
    assert isinstance(refused(missing), NotFound) and "HF_TOKEN" in refused(missing).hint
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert isinstance(refused(missing), NotFound) and "for this token" in str(refused(missing))
    with pytest.raises(NotFound):
        list_files("owner/none", options=QUICK)
    with pytest.raises(NotFound):
        read_range(RemoteFile("owner/name", "main", "none"), 0, 10, options=QUICK)


def test_a_gated_repository_says_what_to_open(stocked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked.repositories["owner/name"].gated = True
    for act in (lambda: resolve(MODEL), lambda: list_files("owner/name"), lambda: read_range(MODEL, 0, 9)):
        with pytest.raises(AccessError, match="gated") as raised:
            act()
        assert f"Open {stocked.url}/owner/name" in raised.value.hint and "HF_TOKEN" in raised.value.hint
    monkeypatch.setenv("HF_TOKEN", "of-a-stranger")
    assert "the account of your token" in refused(MODEL).hint
    monkeypatch.setenv("HF_TOKEN", "right")
    assert resolve(MODEL).size == len(DATA)


def test_a_bad_token_is_named(stocked: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stocked.token = "right"
    monkeypatch.setenv("HF_TOKEN", "wrong")
    error = refused(MODEL)
    assert isinstance(error, AccessError) and "settings/tokens" in error.hint


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessError), (403, AccessError), (429, Busy), (500, Busy), (503, Busy), (418, TransferError)]
)
def test_statuses_are_typed_errors(stocked: Hub, status: int, error: type[Exception]) -> None:
    stocked.fault(Fault("status", status=status, on="head", times=9))
    assert isinstance(refused(MODEL), error)


def test_a_busy_hub_is_asked_again_when_it_says(stocked: Hub) -> None:
    stocked.fault(Fault("status", status=429, retry_after=0.05, on="head"), Fault("status", status=503, on="head"))
    assert resolve(MODEL, options=QUICK).size == len(DATA)
    stocked.fault(Fault("status", status=429, retry_after=600, on="head"))
    assert "600 seconds" in str(refused(MODEL))


@pytest.mark.parametrize(
    "listing", [b"", b"[]", b"{", b'{"siblings": 3}', b'{"sha": "x", "siblings": [{"rfilename": "a"}]}', b"[" * 99999]
)
def test_a_listing_that_is_nonsense(stocked: Hub, monkeypatch: pytest.MonkeyPatch, listing: bytes) -> None:
    monkeypatch.setattr(net.Reply, "body", lambda self, limit: listing)
    with pytest.raises(TransferError, match="cannot be read"):
        list_files("owner/name", options=QUICK)


def test_offline(monkeypatch: pytest.MonkeyPatch, stocked: Hub) -> None:
    file, asked = resolve(MODEL), len(stocked.requests)
    monkeypatch.setenv("LOCALGEMMA_OFFLINE", "1")
    for act in (lambda: resolve(MODEL), lambda: list_files("owner/name"), lambda: read_range(file, 0, 9)):
        with pytest.raises(OfflineError):
            act()
    assert len(stocked.requests) == asked


@pytest.mark.parametrize(
    ("repository", "revision", "path"),
    [
        *(
            (name, "main", "a.gguf")
            for name in ("name", "a/b/c", "../x", "x/..", "/x", "a/b--c", "a/b..c", "a b/c", "", "a/", "-a/b")
        ),
        *(("o/n", name, "a.gguf") for name in ("", "..", "a/../b", "/a", "a/", "a b", "a\\b", "a?b")),
        *(
            ("o/n", "main", p)
            for p in (
                "",
                "/a",
                "../a",
                "a/../b",
                "a//b",
                "a/",
                ".",
                "a\\b",
                "C:/a",
                "a\0b",
                "a\nb",
                "a/. /b",
                "a:b",
                "x" * 9 + "?",
            )
        ),
    ],
)
def test_names_that_could_leave_their_folder_are_refused(repository: str, revision: str, path: str) -> None:
    with pytest.raises(UsageError):
        RemoteFile(repository, revision, path)


@pytest.mark.parametrize("header", ["../../x", "", "a/b", "a" * 200, "x.part"])
def test_a_hash_that_is_no_file_name_is_refused(stocked: Hub, monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    monkeypatch.setattr("standin_hub.Blob.etag", property(lambda self: header))
    stocked.repositories["owner/name"].commits[stocked.repositories["owner/name"].refs["main"]][MODEL.path].sha256 = header
    with pytest.raises(TransferError, match="hash"):
        resolve(MODEL, options=QUICK)
