"""How this machine is set up to reach package managers, read from what they read themselves."""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from corral.domain.egress import Endpoint
from corral.sandboxes.egress.registries import CARGO_CONFIG, GEMRC, HOSTS, PackageManagers, look

pytestmark = pytest.mark.requirement("F036")


def found(home: Path, files: Mapping[str, str], **variables: str) -> PackageManagers:
    """What is found with these files at home and these variables."""
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")
    return look({"HOME": str(home), **variables})


def own(managers: PackageManagers) -> set[str]:
    """The hosts that are not public registries, nor of this machine's own files."""
    return {f"{each.host}:{each.port}" for each in managers.endpoints if each.host.endswith(".corp.test")}


def test_without_settings_the_public_registries_are_known(tmp_path: Path) -> None:
    managers = look({"HOME": str(tmp_path)})
    assert {Endpoint(host) for host in HOSTS} <= set(managers.endpoints)
    assert own(managers) == set()
    assert {name for name in managers.variables if not name.startswith("PIP_")} == set()


def test_pips_files_are_read_and_variables_win(tmp_path: Path) -> None:
    files = {
        ".config/pip/pip.conf": "[global]\nindex-url = https://pip.corp.test/simple\ntimeout = 9\n"
        "[install]\nextra-index-url =\n    http://one.corp.test:8080/simple\n    https://two.corp.test/simple\n"
    }
    managers = found(tmp_path, files)
    assert own(managers) == {"pip.corp.test:443", "one.corp.test:8080", "two.corp.test:443"}
    assert managers.variables["PIP_INDEX_URL"] == "https://pip.corp.test/simple"
    assert managers.variables["PIP_EXTRA_INDEX_URL"] == "http://one.corp.test:8080/simple https://two.corp.test/simple"
    assert managers.variables["PIP_TIMEOUT"] == "9"
    assert all(each.private for each in managers.endpoints if each.host.endswith(".corp.test"))
    later = found(tmp_path, {}, PIP_INDEX_URL="https://other.corp.test/simple")
    assert later.variables["PIP_INDEX_URL"] == "https://other.corp.test/simple"
    assert "pip.corp.test:443" not in own(later)


def test_a_file_that_pip_is_told_of_wins_over_others_and_a_broken_one_is_left_out(tmp_path: Path) -> None:
    files = {
        ".pip/pip.conf": "no ini file",
        ".config/pip/pip.conf": "[global]\nindex_url = https://one.corp.test/simple\n",
        "named.conf": "[global]\nindex-url = https://named.corp.test/simple\n",
    }
    managers = found(tmp_path, files, PIP_CONFIG_FILE=str(tmp_path / "named.conf"))
    assert own(managers) == {"named.corp.test:443"}


def test_local_directories_of_wheels_are_shown_where_they_are(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    managers = found(tmp_path, {}, PIP_FIND_LINKS=f"{wheels} file://{wheels} /nowhere relative", PIP_NO_INDEX="1")
    assert managers.directories == (str(wheels),)
    assert managers.variables["PIP_NO_INDEX"] == "1"


def test_npms_registry_is_the_last_of_its_file_unless_a_variable_names_one(tmp_path: Path) -> None:
    files = {
        ".npmrc": "; comment\nregistry = https://old.corp.test/\nregistry=https://npm.corp.test/npm/\n//npm.corp.test/:_authToken=s3cret\n"
    }
    managers = found(tmp_path, files)
    assert managers.variables["npm_config_registry"] == "https://npm.corp.test/npm/"
    assert own(managers) == {"npm.corp.test:443"} and "s3cret" not in repr(managers)
    by_variable = found(tmp_path, {}, NPM_CONFIG_REGISTRY="https://var.corp.test/")
    assert by_variable.variables["npm_config_registry"] == "https://var.corp.test/"


def test_gos_proxies_are_all_hosts_and_its_words_are_none(tmp_path: Path) -> None:
    listed = "https://go.corp.test|http://go2.corp.test:3000/x,direct"
    managers = found(tmp_path, {}, GOPROXY=listed, GOSUMDB="sum.golang.org https://sum.corp.test")
    assert own(managers) == {"go.corp.test:443", "go2.corp.test:3000", "sum.corp.test:443"}
    assert managers.variables["GOPROXY"] == listed
    assert own(found(tmp_path, {}, GOPROXY="off")) == set()


def test_what_stands_in_for_crates_io_is_found(tmp_path: Path) -> None:
    config = (
        '[source.crates-io]\nreplace-with = "mirror"\n[source.mirror]\nregistry = "sparse+https://cargo.corp.test/i/"\n'
    )
    managers = found(tmp_path, {".cargo/config.toml": config})
    assert own(managers) == {"cargo.corp.test:443"}
    shown = tomllib.loads(managers.files[CARGO_CONFIG])["source"]
    assert shown[shown["crates-io"]["replace-with"]] == {"registry": "sparse+https://cargo.corp.test/i/"}
    elsewhere = tmp_path / "elsewhere"
    assert own(found(elsewhere, {"config": config}, CARGO_HOME=str(elsewhere))) == {"cargo.corp.test:443"}
    for odd in ("not toml [", "[source]\ncrates-io = 1\n", 'source = "x"\n', "[source.crates-io]\nreplace-with = 3\n"):
        assert own(found(tmp_path, {".cargo/config.toml": odd})) == set(), odd


def test_gems_sources_are_shown_where_gem_looks(tmp_path: Path) -> None:
    listed = ":sources:\n- https://me:pass@gem.corp.test/\n- 'http://gem2.corp.test:9292'\ngem: --no-document\n"
    managers = found(tmp_path, {".gemrc": listed})
    assert own(managers) == {"gem.corp.test:443", "gem2.corp.test:9292"}
    assert managers.files == {GEMRC: ":sources:\n- https://gem.corp.test/\n- http://gem2.corp.test:9292\n"}
    assert managers.variables["GEMRC"] == GEMRC
    for odd in ("", ":sources: []\n", ":sources:\n", "gem: --no-document\n", ":sources:\n- ftp://x\n"):
        assert found(tmp_path, {".gemrc": odd}).files == {}, odd


def test_passwords_stay_outside(tmp_path: Path) -> None:
    files = {
        ".config/pip/pip.conf": "[global]\nindex-url = https://me:p%40ss@pip.corp.test/simple\n",
        ".npmrc": "registry=http://npm:n-pass@npm.corp.test:4873/\n",
    }
    managers = found(tmp_path, files, GOPROXY="https://token@go.corp.test")
    assert managers.variables["PIP_INDEX_URL"] == "https://pip.corp.test/simple"
    assert managers.variables["npm_config_registry"] == "http://npm.corp.test:4873/"
    assert managers.variables["GOPROXY"] == "https://go.corp.test"
    given = {(each.host, each.port): each.authorization for each in managers.credentials}
    assert {each.host for each in managers.credentials if not each.tls} == {"npm.corp.test"}
    pairs = {name: "Basic " + base64.b64encode(pair).decode() for name, pair in PAIRS.items()}
    assert given == {
        ("pip.corp.test", 443): pairs["pip"],
        ("npm.corp.test", 4873): pairs["npm"],
        ("go.corp.test", 443): pairs["go"],
    }


@pytest.mark.parametrize("password", ["a,b", "a'b", "a|b", 'a"b', "a<b>c", "a@b"])
def test_a_password_stays_outside_whatever_is_in_it(tmp_path: Path, password: str) -> None:
    for variable in ("PIP_INDEX_URL", "npm_config_registry", "GOPROXY"):
        managers = found(tmp_path, {}, **{variable: f"https://me:{password}@own.corp.test/x"})
        assert managers.variables[variable] == "https://own.corp.test/x"
        pair = base64.b64encode(f"me:{password}".encode()).decode()
        assert [each.authorization for each in managers.credentials] in ([f"Basic {pair}"], [])
    listed = found(tmp_path, {}, GOPROXY=f"https://a.corp.test,git+ssh://me:{password}@b.corp.test|off").variables
    assert listed["GOPROXY"] == "https://a.corp.test,git+ssh://b.corp.test|off"


PAIRS = {"pip": b"me:p@ss", "npm": b"npm:n-pass", "go": b"token:"}


def test_a_public_registry_that_is_named_may_not_be_private_for_that(tmp_path: Path) -> None:
    managers = found(tmp_path, {}, PIP_INDEX_URL="https://pypi.org/simple")
    assert not any(each.private for each in managers.endpoints if each.host == "pypi.org")


def test_addresses_that_are_none_are_left_out(tmp_path: Path) -> None:
    managers = found(tmp_path, {}, PIP_INDEX_URL="https://bad host/", GOPROXY="https://[::1/x", NPM_CONFIG_REGISTRY="?")
    assert own(managers) == set()
