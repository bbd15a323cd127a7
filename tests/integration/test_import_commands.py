"""What a script learns from the exit code of an import."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from broker import cli
from tests.factories import make_nhs_number
from tests.world import AUTHORITIES, CASEY, CHILDREN_COLUMNS, FIELD_KEYS, INDEX_KEY, World, open_world

REFUSED_CHILD = CASEY.replace("9990000018", "9990000019")
REFUSED_AUTHORITY = ",Nowhere Council,,,"


async def run(world: World, *words: str) -> Result:
    """One command, as a script gives it, in a thread of this process."""
    settings = {
        "CPIS_ENVIRONMENT": "development",
        "CPIS_DATA_DIR": str(world.directory),
        "CPIS_DATABASE_URL": world.database.url,
        "CPIS_FIELD_KEYS": ",".join(f"{name}:{base64.b64encode(key).decode()}" for name, key in FIELD_KEYS.items()),
        "CPIS_INDEX_KEY": base64.b64encode(INDEX_KEY).decode(),
    }
    return await asyncio.to_thread(lambda: CliRunner().invoke(cli.app, list(words), env=settings))


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.parametrize(("rows", "code"), [([REFUSED_CHILD], 1), ([CASEY, REFUSED_CHILD], 3), ([CASEY], 0), ([], 0)])
async def test_an_import_ends_with_1_when_every_row_was_refused_and_with_3_when_some_were(
    tmp_path: Path, rows: list[str], code: int, as_json: tuple[str, ...]
) -> None:
    file = tmp_path / "list.csv"
    file.write_text("\n".join((CHILDREN_COLUMNS, *rows)) + "\n")
    async with open_world(f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}", tmp_path) as world:
        ended = await run(world, "children", "import", str(file), "--authority", "706", *as_json)
    assert ended.exit_code == code, ended.output
    if as_json:
        refused = json.loads(ended.stdout)["refused"]
        assert len(refused) == rows.count(REFUSED_CHILD), "the report is printed whatever the code"


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([REFUSED_AUTHORITY], 1),
        ([*AUTHORITIES.splitlines()[1:], REFUSED_AUTHORITY], 3),
        (AUTHORITIES.splitlines()[1:], 0),
    ],
)
async def test_an_import_of_the_directory_does_so_too(tmp_path: Path, rows: list[str], code: int) -> None:
    file = tmp_path / "authorities.csv"
    file.write_text("\n".join((AUTHORITIES.splitlines()[0], *rows)) + "\n")
    async with open_world(f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}", tmp_path) as world:
        ended = await run(world, "import", "authorities", str(file))
    assert ended.exit_code == code, ended.output


async def test_a_file_that_is_held_ends_with_3_for_nothing_of_it_counts_yet(tmp_path: Path) -> None:
    listed = [CASEY.replace("L1", f"L{n}").replace("9990000018", make_nhs_number(9 * n)) for n in range(12)]
    file = tmp_path / "list.csv"
    codes = []
    async with open_world(f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}", tmp_path) as world:
        over = [*(row.replace(",,W1", ",2026-02-13,W1") for row in listed), REFUSED_CHILD]
        for rows, options in ((listed, ()), (over, ("--dry-run",)), (over, ("--dry-run", "--json")), (over, ())):
            file.write_text("\n".join((CHILDREN_COLUMNS, *rows)) + "\n")
            ended = await run(world, "children", "import", str(file), "--authority", "706", *options)
            codes.append(ended.exit_code)
            if "--json" in options:
                tried = json.loads(ended.stdout)
                assert (tried["state"], tried["file_code"], tried["loaded"]) == ("tried", None, 0)
                assert tried["problem"].startswith("the file would be held: ")
            elif rows is over:
                assert "a list officer must confirm or reject it" in ended.output and "row 14, " in ended.output
    assert codes == [0, 3, 3, 3], ended.output


async def test_lines_are_left_whole_and_words_as_they_were_written(tmp_path: Path) -> None:
    words = "Third visit in two months [/b]: " + "ring the allocated worker " * 4
    async with open_world(f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}", tmp_path) as world:
        nothing = await run(world, "patterns", "list")
        told = ("--count=3", "--hours=1440", f"--words={words}", "--by=Liz Lister")
        worded = await run(world, "patterns", "word", "706", "visits", *told)
        listed = await run(world, "patterns", "list")
    assert (nothing.stdout, worded.exit_code) == ("no authority has worded a rule\n", 0)
    assert listed.stdout == f"706  visits 1  draft, not tried, at least 3 in 1440 h: {words.strip()}\n"
