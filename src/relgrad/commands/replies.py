"""`relgrad split`: a file of replies into two phases, validation and test, with checks that can fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from relgrad.text.replies.rows import Reading
    from relgrad.text.replies.splitting import Split


ADVICE = (
    "too few posts, or posts with very many replies, make parts that cannot be even. Give more posts, a larger --validation and "
    "--test, or leave one out (--validation 0)"
)


def split(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Lines of JSON; without it, the built-in data set.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write the parts into.")] = Path(
        "data/replies"
    ),
    split_ratio: Annotated[
        float, typer.Option("--split-ratio", help="Share of the training rows that is for the first phase.")
    ] = 0.5,
    validation: Annotated[float, typer.Option("--validation", help="Share of all rows to validate by.")] = 0.05,
    test: Annotated[float, typer.Option("--test", help="Share of all rows to test by.")] = 0.05,
    seed: Annotated[int, typer.Option("--seed", help="The split is the same for the same seed.")] = 0,
    filter_words: Annotated[
        list[str] | None, typer.Option("--filter", metavar="WORD", help="Drop replies with this word; repeatable.")
    ] = None,
    scrub: Annotated[
        bool, typer.Option("--scrub/--keep-names", help="Take out handles, links, e-mail addresses and ids.")
    ] = True,
    key: Annotated[
        str, typer.Option("--key", envvar="RELGRAD_PSEUDONYM_KEY", help="Key of the pseudonyms that stand for ids.")
    ] = "",
    figure: Annotated[bool, typer.Option("--figure/--no-figure", help="Draw the distributions.")] = True,
) -> None:
    """Split replies into a supervised phase, a GRPO phase, validation and test: by post, alike in engagement.

    Exit code 1 where a check of the split fails; the files are written all the same.

    Example: [bold]relgrad split replies.jsonl --out data/replies[/bold]
    """
    from relgrad.core.run_folder import write_json
    from relgrad.text.replies import figure as picture
    from relgrad.text.replies import made, rows, splitting

    if figure:
        picture.require()
    shares = splitting.shares_of(split_ratio, validation, test)
    cleaning = rows.Cleaning(scrub, key, tuple(filter_words or ()))
    reading = rows.Reading(made.rows()) if file is None else rows.read(file, cleaning)
    result = splitting.split(reading.rows, shares, seed)
    for part, own in result.parts.items():
        rows.write(out / splitting.FILES[part], own)
    record = {
        **splitting.statistics_of(result),
        "source": {
            "file": str(file or "built in"),
            "lines": reading.lines or len(reading.rows),
            "rows": len(reading.rows),
        },
        "settings": {"shares": shares, "seed": seed, "scrub": scrub, "filter_words": list(filter_words or ())},
        "dropped": reading.reasons,
        "unknown_fields": dict(reading.unknown),
        "checks": [vars(check) for check in result.checks],
        "notes": result.notes,
    }
    write_json(out / "phase_split_statistics.json", record)
    rows.write(out / "dropped.jsonl", [vars(each) for each in reading.dropped])
    if figure:
        picture.draw(result.parts, out / "phase_split_distributions.png")
    _tell(out, reading, result, splitting.FILES)
    if not result.passed:
        if any(check.name.startswith(("size", "engagement")) for check in result.checks if not check.passed):
            print(f"advice   {ADVICE}")
        raise typer.Exit(1)


def _tell(out: Path, reading: Reading, result: Split, files: Mapping[str, str]) -> None:
    """What was read, dropped and written, and every check."""
    for reason, count in reading.reasons.items():
        numbers = ", ".join(str(each.line) for each in reading.dropped if each.reason == reason)
        print(f"dropped  {count} x {reason} (line {numbers if len(numbers) < 60 else numbers[:60] + ' …'})")
    for name, count in reading.unknown.items():
        print(f"ignored  field {name!r} of {count} lines")
    for note in result.notes:
        print(f"note     {note}")
    for part, own in result.parts.items():
        print(f"wrote    {out / files[part]}: {len(own):,} rows, {len({row['tweet_id'] for row in own}):,} posts")
    for check in result.checks:
        print(f"{'passed' if check.passed else 'FAILED'}   {check.name}: {check.detail}")
