"""Bytes → text: which encoding a file has, and a stream of its characters.

In: a path, plain or packed. Out: the name of the encoding, and a text stream in which every byte that does not fit
stands as a lone surrogate (PEP 383), so that one bad byte costs its row and not the file.

The rule, the same for every file: a sample is taken, the first MiB or, where that is plain ASCII, the first block
that is not. A byte-order mark decides; so does a sample that is wholly UTF-8. Otherwise each of its lines is tried
as UTF-8, as GB18030, which contains GBK and GB2312, and as Big5. Nearly any bytes decode as one of the last two: they
count only where at least a quarter of the characters are everyday ones, and the one with more of them goes first. Of
what is left the one with fewer misfits is taken, UTF-8 on a tie, if at most a third of the lines are misfits. A text
in which nothing but a few bytes between Latin letters is beyond ASCII is read as Western, in the last resort.
"""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import BeforeValidator

from wenmo.errors import DataError, say
from wenmo.text.archive import open_bytes, reading

SAMPLE_BYTES = 1 << 20
_PLAUSIBLE = 0.25  # everyday share: Tang poems 0.41, news titles 0.48, reviews 0.75; Big5 or UTF-8 misread 0.03
_WESTERN_SHARE = 0.3  # of the letters: French has 0.05; Russian or Greek misread as Western nearly 1
_UTF16_CHARACTERS = 4096  # as many are looked at

# The 300 most frequent characters of reviews, news, abstracts and a novel, with their traditional forms.
_EVERYDAY = frozenset(
    "的了不一是有人在我个大和来这好中上用以为很发要也可到国说能子出还生道时对就们他水下分方家间行过年地会"
    "果房服机多小没都成后得高去点作进理新度于你自日性着法面里天店本学动开比平价太现酒么务电体定实与看工业"
    "心提前如次经化之只合数通量等物力图那问最便全结两入意应错因同明重起儿事其买东种住感计外市常又系公关主"
    "基将月手三头文产回品见给算金内宝设然些而建加制样程部所长二元话无表相知美特网但并差者想信玉正当较解别"
    "更快质题打总气老情期再位西非场员组洗及收京书型件利真保觉第门统展政客车名海从使评板贾安研变此区流什交"
    "被据式效标强格民活考已才衣送色单万目或原台早值接吃听笑调处持且管今影几装究术身报口星改该女模放货少资"
    "個來這爲發國說還時對們間過會機沒後點進於裏學動開價現麼務電體實與業經數圖問結兩應錯兒買東種計關將頭產"
    "見給內寶設樣長話無網並當較別質題總氣場員組書覺門統車從評賈變區據標強單萬臺喫聽調處幾裝術報該貨資為裡"
    "，。、！？：；“”‘’（）《》【】…—·　"
)
_WESTERN = frozenset("àáâãäåæçèéêëìíîïñòóôõöøœšùúûüýžßðþ" "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØŒŠÙÚÛÜÝŽÞŸ"
                     "“”‘’‚„–—…•‹›«»¿¡§©®™°·´×±½¼¾¹²³ªº€£¢µ\u00a0")
_MAGIC = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"), (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "zst"), (b"PK\x03\x04", "zip, xlsx"), (b"PAR1", "parquet"),
    (b"%PDF", "PDF"),
)  # fmt: skip
_ALIASES = {
    "utf8": "utf-8", "utf-8-sig": "utf-8", "gbk": "gb18030", "gb2312": "gb18030", "cp936": "gb18030",
    "big5hkscs": "big5", "big5-hkscs": "big5", "latin1": "latin-1", "iso-8859-1": "latin-1", "windows-1252": "cp1252",
    "utf16": "utf-16", "utf-16le": "utf-16-le", "utf-16be": "utf-16-be",
}  # fmt: skip
_CODECS = {"utf-8": "utf-8-sig", "big5": "big5hkscs"}  # a byte-order mark is no part of the text
_DOUBLE_BYTE = ("gb18030", "big5", "cp950")


def _canonical(value: object) -> object:
    return _ALIASES.get(value.lower(), value.lower()) if isinstance(value, str) else value


Encoding = Annotated[
    Literal["auto", "utf-8", "gb18030", "big5", "cp950", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"],
    BeforeValidator(_canonical)]


def open_text(path: Path, encoding: str, newline: str | None = None) -> io.TextIOWrapper:
    """The characters, without a byte-order mark; a byte that does not fit is a lone surrogate.

    `utf-16` goes by its mark; without one it is little-endian.
    """
    stream = open_bytes(path)
    if encoding == "utf-16":  # Python's codec refuses a text without a mark
        mark = stream.read(2)
        encoding = "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-16-le"
        stream.seek(0)
    if encoding in ("gb18030", "utf-16-le", "utf-16-be"):  # Python's codecs for these keep the mark
        mark = "\ufeff".encode(encoding)
        if stream.read(len(mark)) != mark:
            stream.seek(0)
    # In UTF-16 what does not fit is half a surrogate pair, and is passed on as it is.
    errors = "surrogatepass" if encoding.startswith("utf-16") else "surrogateescape"
    return io.TextIOWrapper(stream, _CODECS.get(encoding, encoding), errors, newline)


def detect(path: Path) -> str:
    """The encoding by the rule above; DataError with the offset of the first misfit if it is none of them."""
    with reading(path), open_bytes(path) as stream:
        offset, sample, complete = _sample(stream)
    if offset == 0 and sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and (
            not sample.startswith(codecs.BOM_UTF32_LE)):
        return "utf-16"
    # ASCII in UTF-16 is UTF-8 too: every other byte is a NUL then.
    if 4 * sample.count(0) <= len(sample) and (sample.isascii() or _fits(sample, "utf-8", complete)):
        return "utf-8"
    if wide := _utf16(sample):
        return wide
    if _fits(sample, "utf-8", complete):
        return "utf-8"
    return _by_lines(sample, complete) or _refuse(path, offset, sample)


def _by_lines(sample: bytes, complete: bool) -> str:
    """Which of the encodings that keep ASCII fits most lines; empty if none does."""
    lines = [(line, complete or index > 0) for index, line in enumerate(reversed(sample.split(b"\n"))) if line.strip()]
    utf8 = [_fits(line, "utf-8", whole) for line, whole in lines]
    misfits = {"utf-8": utf8.count(False)}
    everyday = {}
    for encoding in _DOUBLE_BYTE:
        codec = _CODECS.get(encoding, encoding)
        fits = [line.isascii() or (not as_utf8 and _fits(line, codec, whole))
                for (line, whole), as_utf8 in zip(lines, utf8, strict=True)]
        text = b"\n".join(line for (line, _), fit in zip(lines, fits, strict=True) if fit).decode(codec, "ignore")
        share = _share(_EVERYDAY, text)
        if share >= _PLAUSIBLE:
            misfits[encoding], everyday[encoding] = fits.count(False), share
    if everyday:  # of two readings that both look Chinese, the wrong one finds fewer everyday characters by far
        most = max(everyday.values())
        misfits = {each: n for each, n in misfits.items() if each == "utf-8" or everyday[each] > 0.7 * most}
    some_utf8 = any(fits and not line.isascii() for fits, (line, _) in zip(utf8, lines, strict=True))
    if not everyday and not some_utf8 and (western := _western(sample)):
        return western
    best = min(misfits, key=misfits.__getitem__)
    return best if 3 * misfits[best] <= len(lines) else ""


def _sample(stream: IO[bytes]) -> tuple[int, bytes, bool]:
    """(its offset, the sample, whether it reaches the end of the file)."""
    offset = 0
    while True:
        block = stream.read(SAMPLE_BYTES)
        if len(block) < SAMPLE_BYTES or not block.isascii() or b"\0" in block:
            return offset, block, len(block) < SAMPLE_BYTES
        offset += len(block)


def _fits(data: bytes, encoding: str, complete: bool) -> bool:
    """Strictly; where more follows, the last character may be cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(data, final=complete)
    except UnicodeDecodeError:
        return False
    return True


def _utf16(sample: bytes) -> str:
    """UTF-16 without a mark: read so, a quarter of the characters are ASCII or everyday ones, and none is NUL."""
    shares = {}
    for encoding in ("utf-16-le", "utf-16-be"):
        text = sample[: 2 * _UTF16_CHARACTERS].decode(encoding, "ignore")
        if text and "\0" not in text:
            usual = sum(character.isascii() or character in _EVERYDAY for character in text)
            shares[encoding] = usual / len(text)
    best = max(shares, key=shares.__getitem__, default="")
    return best if shares.get(best, 0) >= _PLAUSIBLE else ""


def _western(sample: bytes) -> str:
    """`latin-1`, or `cp1252` if it uses what that adds; empty where the bytes do not look Western."""
    try:
        text = sample.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    beyond = [character for character in text if not character.isascii()]
    letters = sum(character.isalpha() for character in text)
    if _share(_WESTERN, text) < 1 or sum(map(str.isalpha, beyond)) > _WESTERN_SHARE * letters:
        return ""
    return "latin-1" if all(ord(character) < 0x100 for character in beyond) else "cp1252"


def _share(characters: frozenset[str], text: str) -> float:
    """The share of these characters among those beyond ASCII."""
    beyond = [character for character in text if not character.isascii()]
    return sum(character in characters for character in beyond) / max(1, len(beyond))


def _refuse(path: Path, offset: int, sample: bytes) -> str:
    try:
        sample.decode("utf-8")
        start = len(sample)
    except UnicodeDecodeError as error:
        start = error.start
    magic = next((name for mark, name in _MAGIC if offset == 0 and sample.startswith(mark)), "")
    if magic:
        raise DataError(
            say(f"this is not a plain text file: it begins like {magic}", f"这不是纯文本文件：开头像 {magic}"),
            where=str(path),
            mend=say("save it as UTF-8 text (CSV UTF-8 in Excel), or give it the extension of its format",
                     "请另存为 UTF-8 文本（Excel 中选“CSV UTF-8”），或改用与格式相符的扩展名"),
        )
    shown = " ".join(f"{byte:02x}" for byte in sample[start : start + 8])
    raise DataError(
        say("the text is neither UTF-8 nor plausible GB18030 (GBK), Big5 or Western",
            "文本既不是 UTF-8，也不像 GB18030（GBK）、Big5 或西文编码"),
        where=say(f"{path}, byte offset {offset + start}: {shown}", f"{path}，字节偏移 {offset + start}：{shown}"),
        mend=say("name it, `encoding: gb18030` or --encoding gb18030 (utf-8, big5, utf-16-le, latin-1 …): rows that do "
                 "not fit it are then quarantined",
                 "请指明 `encoding: gb18030` 或 --encoding gb18030（utf-8、big5、utf-16-le、latin-1 等）："
                 "此后不符合的行会被隔离"),
    )
