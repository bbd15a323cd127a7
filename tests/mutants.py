"""Messages broken in seeded ways: bytes, structure, encodings. The same seed and originals give the same mutants."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_FRAMING = b"\x0b\x1c"
_ODD_BYTES = (
    *(b"\x00", b"\x00" * 50, b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xef\xbb\xbf"),
    *(b"\x1b[2J", b"\x7f", b"\r\r\r", b"\n", b"\t", b"\xe2\x80\xae", b"\xc2\x85", b"\xe2\x80\xa8", b"%00", b"'; --"),
)
_ODD_TEXTS = (
    *(b"\\X0\\", b"\\XZZ\\", b"\\X" + b"41" * 500 + b"\\", b"\\.sp99999999\\", b"\\", b"\\\\\\", b"\\H\\\\F\\\\N"),
    *(b"\\C2842\\", b"\\MFFFFFF\\", b'""', b"&" * 300, b"^" * 300, b"~" * 300, b"|" * 300, b"9" * 400, b"-1", b"NaN"),
    *(b"99999999999999", b"00000000", b"20261332256199", b"1e400", b"0001-01-01", b"20260230+9999", b"A" * 3_000),
)
_SEGMENTS = (b"MSH|^~\\&|", b"BHS|^~\\&|", b"FHS|", b"BTS|9", b"FTS|", b"PID|", b"PV1", b"MRG|", b"ZZZ|1", b"EVN")

Break = Callable[[random.Random, bytes], bytes]


# HL7 v2


def break_hl7v2(originals: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """So many broken messages, all different, without the bytes that frame them on the wire.

    Four in five keep their first segment, so that they come past the door's check of the sender.
    """
    draws = random.Random(f"{seed}:hl7v2")
    return _different(originals, count, lambda: _break_message(draws, draws.choice(originals)))


def _break_message(draws: random.Random, original: bytes) -> bytes:
    end = original.find(b"\r") + 1 if draws.random() < 0.8 else 0
    head, rest = original[:end], original[end:]
    for _ in range(draws.choice((1, 1, 1, 2, 3))):
        rest = draws.choice(_HL7V2_BREAKS)(draws, rest)
    return (head + rest).translate(None, _FRAMING)


def _different(originals: Sequence[bytes], count: int, invent: Callable[[], bytes]) -> Iterator[bytes]:
    seen = {hash(original) for original in originals}
    while count:
        mutant = invent()
        if hash(mutant) not in seen:
            seen.add(hash(mutant))
            count -= 1
            yield mutant


def break_frames(messages: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Each message with its framing broken: what goes over the wire before the sender closes."""
    draws = random.Random(f"{seed}:frames")
    for message in messages:
        framed = b"\x0b%b\x1c\r" % message
        at = draws.randrange(1, len(message))
        yield draws.choice(
            (
                framed[:-1],
                framed[:-2],
                framed[1:],
                framed[: at + 1],
                b"\x0b" + framed,
                b"\x0b\x1c\r" + framed,
                message[:at] + b"\x1c\r" + message[at:],
                framed[:at] + b"\x0b" + framed[at:],
                framed[:at] + b"\x1c\r" + framed[at:],
                framed[:at] + b"\x1c" + framed[at:],
                draws.randbytes(at % 900) + framed,
                framed + draws.randbytes(at),
                b"\r\n" * 500 + framed,
            )
        )


def _flip_bits(draws: random.Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(draws.randint(1, 8) if changed else 0):
        changed[draws.randrange(len(changed))] ^= 1 << draws.randrange(8)
    return bytes(changed)


def _delete(draws: random.Random, text: bytes) -> bytes:
    at = draws.randint(0, len(text))
    return text[:at] + text[at + draws.choice((1, 1, 5, 40, 400)) :]


def _truncate(draws: random.Random, text: bytes) -> bytes:
    return text[: draws.randint(0, len(text))]


def _insert(draws: random.Random, text: bytes) -> bytes:
    at = draws.randint(0, len(text))
    return text[:at] + draws.choice(_ODD_BYTES + _ODD_TEXTS) + text[at:]


def _double_segment(draws: random.Random, text: bytes) -> bytes:
    lines = text.split(b"\r")
    line = draws.choice(lines)
    return b"\r".join(lines + [line] * draws.choice((1, 2, 50)))


def _shuffle_segments(draws: random.Random, text: bytes) -> bytes:
    lines = text.split(b"\r")
    draws.shuffle(lines)
    return b"\r".join(lines)


def _add_segment(draws: random.Random, text: bytes) -> bytes:
    lines = text.split(b"\r")
    lines.insert(draws.randint(0, len(lines)), draws.choice(_SEGMENTS))
    return b"\r".join(lines)


def _change_line_ends(draws: random.Random, text: bytes) -> bytes:
    return text.replace(b"\r", draws.choice((b"\n", b"\r\n", b"", b"\r\r", b" ", b"\x00")))


def _swap_separators(draws: random.Random, text: bytes) -> bytes:
    one, other = draws.sample((b"|", b"^", b"~", b"\\", b"&", b"#"), 2)
    return text.translate(bytes.maketrans(one + other, other + one))


def _change_field(draws: random.Random, text: bytes) -> bytes:
    fields = text.split(b"|")
    at = draws.randrange(len(fields))
    odd = draws.choice(_ODD_BYTES + _ODD_TEXTS)
    fields[at] = draws.choice((odd, fields[at] + odd, odd + b"^" + odd, b"", b"~".join([fields[at]] * 60)))
    return b"|".join(fields)


def _change_encoding(draws: random.Random, text: bytes) -> bytes:
    return text.decode("latin-1").encode(draws.choice(("utf-16", "utf-16-be", "utf-32", "utf-7", "utf-8", "cp037")))


_HL7V2_BREAKS: Sequence[Break] = (
    *(_flip_bits, _flip_bits, _delete, _truncate, _insert, _insert, _double_segment, _shuffle_segments),
    *(_add_segment, _change_line_ends, _swap_separators, _change_field, _change_field, _change_field),
    _change_encoding,
)


# FHIR

_NUMBER = "a number of four hundred digits stands here"
_ODD_VALUES: Sequence[Any] = (
    *(None, True, 0, -1, 1e308, _NUMBER, "", " ", "\0", "\ud800", "\udfff\ud800", "x" * 5_000, "\u202e", [], {}, [[]]),
    *([None], {"": ""}, {"value": None}, {"resourceType": "Patient"}, {"resourceType": 1}, "urn:uuid:", "#", "../../x"),
    *("9990000018", "0000-00-00", "2026-02-30", "9999-12-31T24:00:00Z", "2026-02-14T03:07:00+99:99", float("nan")),
)


def break_fhir(originals: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """So many broken Bundles, all different: two in three still JSON, the others broken as bytes."""
    draws = random.Random(f"{seed}:fhir")
    return _different(originals, count, lambda: _break_bundle(draws, draws.choice(originals)))


def _break_bundle(draws: random.Random, body: bytes) -> bytes:
    if draws.random() < 0.67:
        document = json.loads(body)
        for _ in range(draws.choice((1, 1, 2, 4))):
            _break_element(draws, document)
        return json.dumps(document).replace(f'"{_NUMBER}"', "9" * 400).encode()
    for _ in range(draws.choice((1, 1, 2))):
        body = draws.choice(_BYTE_BREAKS)(draws, body)
    return body


def _break_element(draws: random.Random, document: Any) -> None:
    """Change one element anywhere: its value, its type, how often or how deep it is there."""
    places: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        element = waiting.pop()
        names = list(element) if isinstance(element, dict) else range(len(element))
        for name in names:
            places.append((element, name))
            if isinstance(element[name], dict | list):
                waiting.append(element[name])
    if not places:
        return
    holder, name = draws.choice(places)
    chance = draws.random()
    if chance < 0.45:
        holder[name] = copy.deepcopy(draws.choice(_ODD_VALUES))
    elif chance < 0.6:
        del holder[name]
    elif chance < 0.75:
        other, its_name = draws.choice(places)
        holder[name] = json.loads(
            json.dumps(other.get(its_name) if isinstance(other, dict) else draws.choice(_ODD_VALUES))
        )
    elif chance < 0.85:
        holder[name] = [holder[name]] * draws.choice((1, 2, 30))
    else:
        for _ in range(draws.choice((1, 20, 70, 400))):
            holder[name] = draws.choice(([holder[name]], {"extension": holder[name]}))


def _double_key(draws: random.Random, text: bytes) -> bytes:
    at = text.find(b"{", draws.randint(0, len(text)))
    key = draws.choice((b'"resourceType": "Bundle", ', b'"id": "x", "id": "y", ', b'"birthDate": "2015-03-02", ' * 2))
    return text[: at + 1] + key + text[at + 1 :]


def _nest(draws: random.Random, text: bytes) -> bytes:
    depth = draws.choice((10, 100, 2_000))
    at = text.find(b":", draws.randint(0, len(text))) + 1
    return text[:at] + b"[" * depth + b"]" * draws.choice((depth, 0)) + b"," + text[at:]


def _write_otherwise(draws: random.Random, text: bytes) -> bytes:
    odd = (b'"\\ud800"', b'"\\u0000"', b"1E400", b"-0", b"NaN", b"9" * 400, b"01", b'"\\x"', b"'x'", b"//")
    at = text.find(b":", draws.randint(0, len(text))) + 1
    return text[:at] + draws.choice(odd) + b"," + text[at:]


_BYTE_BREAKS: Sequence[Break] = (
    *(_flip_bits, _delete, _truncate, _insert, _double_key, _double_key, _nest, _write_otherwise, _change_encoding),
)
