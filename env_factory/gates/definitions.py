"""Definitions that a text gives and programs like to miss: rounding, medians, deviations, units, the zone of a clock.

Each row needs a text that is explicit, a program that does the other thing in plain sight, and nothing in it that could mean the
right one. A program that gets there by an unusual way shows neither, and is left alone.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Slip(NamedTuple):
    """A definition, how it is missed, and what would show that it is not: regular expressions."""

    name: str
    said: str
    missed: str
    unless: str


_ROUND = r"(?<![\w.])round\("
_MIDDLE, _MEAN = r"\b(?:two )?(?:middle|central)\b", r"\b(?:mean|averaged?)\b"
_POWERS = r"2 ?\*\* ?[123]0"
_NUMERIC_SORT = r"\s-[\w,.]*[ngVh]"
SLIPS = (
    Slip(
        "half is rounded up",
        r"\bhalf(?: an?)?(?: \w+){0,2} (?:is |are )?(?:rounded )?(?:up|upwards|away from zero)\b|"
        r"\bround(?:ed|ing|s)?[- ]half[- ]up\b|\bcommercial rounding\b",
        _ROUND,
        r"ROUND_HALF_UP|\+ ?0?\.5|\+ ?50?\b|// ?|floor|Decimal|copysign|nextafter|1e-",
    ),
    Slip(
        "half is rounded to even",
        r"\b(?:half[- ](?:to[- ])?even|bankers?'?s? rounding|to the even)\b",
        r"ROUND_HALF_UP|(?:int|floor)\([^)\n]*\+ ?0?\.5\)",
        rf"ROUND_HALF_EVEN|{_ROUND}",
    ),
    Slip(
        "it is rounded down",
        r"\b(?:rounded down|round(?:s|ing)? down|truncated to (?:a |the )?(?:whole|integer)|cut to (?:a )?whole)\b",
        rf"{_ROUND}|%\.\d+f|:\.\d+f\}}|\.toFixed\(|Math\.round|printf",
        r"//|floor|\bint\(|trunc|ROUND_DOWN|ROUND_FLOOR|%d|\bdivmod\(|\bexpr\b|\$\(\(|scale=0",
    ),
    Slip(
        "the median of an even number is the mean of two",
        rf"{_MEAN}[^.\n]{{0,40}}{_MIDDLE}|{_MIDDLE}[^.\n]{{0,40}}{_MEAN}",
        r"\[\s*(?:len\(\w+\)|n|\w*count\w*)\s*(?://|>>)\s*[12]\s*\]|\[int\((?:len\(\w+\)|n)\s*/\s*2\)\]",
        r"\bmedian\(|% ?2|- ?1\)?\s*(?:\]|//|/)|& ?1|~\w+\]|\+ 1\) ?// ?2|percentile|quantile",
    ),
    Slip(
        "percentiles are by nearest rank",
        r"\bnearest[- ]rank\b",
        r"\[[^\]\n]*\* ?\w+ ?(?://|/) ?100[^\]\n]*\]|\[int\([^\]\n]*\)\]|quantiles?\(|percentile\(\w+, ?\w+\)$",
        r"ceil|-\(-|- ?1\)?\s*\]|\+ ?99|inverted_cdf|round\(",
    ),
    Slip(
        "the deviation is the population's",
        r"\bpopulation (?:standard )?(?:deviation|variance)\b",
        r"\b(?:stdev|variance)\(",
        r"\bpstdev\(|\bpvariance\(|ddof",
    ),
    Slip(
        "the deviation is the sample's",
        r"\bsample (?:standard )?(?:deviation|variance)\b",
        r"\b(?:pstdev|pvariance)\(",
        r"(?<!p)(?:stdev|variance)\(|n ?- ?1|ddof",
    ),
    Slip(
        "numbers sort as numbers",
        r"\b(?:numerically|as numbers|in numeric(?:al)? order)\b",
        rf"(?:^|[|;&(]\s*)sort\b(?![^|;\n]*{_NUMERIC_SORT})",
        rf"\bsort\b[^|;\n]*{_NUMERIC_SORT}|\bint\(|\bfloat\(|sort_by|tonumber|sorted\(",
    ),
    Slip(
        "1 KiB is 1024 bytes",
        r"\b[KMG]iB\b|\b1024 bytes\b",
        r"(?:/|\*)\s*1000(?:000)?\b|1e[36]\b",
        rf"1024|1048576|(?:<<|>>) ?[123]0|{_POWERS}",
    ),
    Slip(
        "1 kB is 1000 bytes",
        r"\b1000 bytes\b|\b[kM]B\b[^.\n]{0,30}\b1000(?:000)?\b",
        rf"(?:/|\*)\s*1024\b|1048576|{_POWERS}",
        r"\b1000(?:000)?\b|1e[36]\b",
    ),
    Slip(
        "times are UTC",
        r"\b(?:in|as|is|are|to) UTC\b",
        r"\blocaltime\(|\bfromtimestamp\([^,()\n]*\)|\bdate \+",
        r"(?i)utc|gmtime|timezone|\bTZ=|date -u",
    ),
    Slip(
        "the order falls",
        r"\b(?:in )?(?:descending|decreasing)(?: order)?\b|\b(?:largest|highest|biggest|longest|newest|latest) first\b",
        r"\bsorted\(|\.sort\(|(?:^|[|;&(]\s*)sort\b",
        r"reverse|\[::-1\]|lambda[^\n]*-|most_common|\bsort\b[^|;\n]*\s-[\w,.]*r|(?i:desc)|nlargest|\btac\b|heapq|"
        r"ls -\w*[tS]|\(-|= -",
    ),
    Slip(
        "case does not count",
        r"\bcase[- ]insensitiv|\bregardless of (?:upper |lower )?case\b|\bignor\w+ (?:the )?(?:upper |lower )?case\b",
        r".",
        r"lower|upper|casefold|capitalize|IGNORECASE|re\.I\b|\(\?i|\s-\w*[iIf]|(?i:nocase)|\btr\b|\^\^|,,\}|/\w*i\w*\b|downcase",
    ),
    Slip(
        "folders are gone through to the bottom",
        r"\brecursive(?:ly)?\b|\b(?:at|of) any depth\b|\ball (?:its |their )?sub-?(?:folders|directories)\b",
        r"\bos\.listdir\(|\.iterdir\(|\bglob\(|(?:^|[|;&(]\s*)ls\b",
        r"walk|rglob|\*\*|\bfind\b|recursive|\s-\w*[rR]|globstar|scandir|def (\w+)\([\s\S]*\b\1\(",
    ),
    Slip(
        "columns are separated by tabs",
        r"\btab[- ]separated\b|\bseparated by (?:a |one |single )?tabs?\b",
        r"[\"'][,;|][\"']\.join|sep=[\"'][,;|][\"']|OFS=[\"']?[,;|]",
        r"\\t|\t|\bcut\b|\bpaste\b|excel_tab|@tsv",
    ),
)
_SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBER = rf"(\d+(?:\.\d+)?|{'|'.join(_SMALL)})\b"
_ABOVE = "(?:more|longer|older|above|higher|greater|later|larger|bigger)"
_BELOW = "(?:fewer|less|shorter|younger|below|lower|smaller|earlier)"
BOUNDS = (
    (
        rf"\b(?:at least|no (?:fewer|less) than|a minimum of) {_NUMBER}|\b{_NUMBER}(?: \w+)? or {_ABOVE}\b",
        ">",
        ("<", ">=", "<="),
    ),
    (
        rf"\b(?:more|longer|larger|greater|higher|older|bigger) than {_NUMBER}|\b(?:over|above|exceed(?:s|ing)?) {_NUMBER}",
        ">=",
        ("<=", ">", "<"),
    ),
    (
        rf"\b(?:at most|no more than|not more than|up to|a maximum of) {_NUMBER}|\b{_NUMBER}(?: \w+)? or {_BELOW}\b",
        "<",
        (">", "<=", ">="),
    ),
    (rf"\b(?:less|fewer|shorter|smaller|lower|younger) than {_NUMBER}|\b(?:under|below) {_NUMBER}", "<=", (">=", "<", ">")),
)
"""What a text says of a number, the comparison with it that is off by one, and those that may be meant."""
_SHELL = {">": "-gt", ">=": "-ge", "<": "-lt", "<=": "-le"}


def bounds(said: str, programs: str) -> list[str]:
    """Bounds that the text includes and the programs exclude, or the other way round, in words."""
    found = []
    for pattern, wrong, right in BOUNDS:
        for match in re.finditer(pattern, said, re.IGNORECASE):
            word = next(group for group in match.groups() if group).lower()
            number = str(_SMALL.index(word)) if word in _SMALL else word
            if _compares(wrong, number, programs) and not any(_compares(each, number, programs) for each in right):
                found.append(f"the text says {match.group(0)!r}, the solution compares with {wrong} {number}")
    return found


def _compares(sign: str, number: str, programs: str) -> bool:
    turned = sign.translate(str.maketrans("<>", "><"))
    ends, starts = (
        rf"(?:{re.escape(sign)}|{_SHELL[sign]}) *{re.escape(number)}(?![\w.])",
        rf"(?<![\w.]){re.escape(number)} *{re.escape(turned)}(?!=)",
    )
    return bool(re.search(ends, programs) or re.search(starts, programs))


def slips(said: str, programs: str) -> list[str]:
    """What the text defines one way and the programs do another, in words."""
    return [
        f"the text says that {slip.name} ({match.group(0)!r}), the solution has {wrong.group(0).strip()!r}"
        for slip in SLIPS
        if (match := re.search(slip.said, said, re.IGNORECASE))
        and (wrong := re.search(slip.missed, programs, re.MULTILINE))
        and not re.search(slip.unless, programs)
    ]
