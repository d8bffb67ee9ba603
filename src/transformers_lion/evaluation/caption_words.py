"""Split captions into words for caption metrics: lowercase Penn Treebank tokens without punctuation.

Source: COCO's caption evaluation (arXiv:1504.00325, section 3) tokenizes with Stanford's PTBTokenizer 3.4.1, a Java
program, and drops punctuation. This module does the same without Java. Its rules were written from the output of that
program, and docs/evaluation.md reports how often the two differ. The time is linear in the length of the caption.
"""

import re

PUNCTUATION = frozenset(["''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that are not words. Brackets count as words: COCO's list means to drop them, but it spells them in upper case.
"""

BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"})

SYMBOLS = str.maketrans({
    "\u2019": "'", "\u2018": "'", "\u201b": "'", "\u0092": "'", "\u0091": "'",
    "\u2013": " -- ", "\u2014": " -- ", "\u2015": " -- ", "\u0096": " -- ", "\u0097": " -- ", "\u2026": " ... ",
    "\u201c": '"', "\u201d": '"', "\u00ab": '"', "\u00bb": '"', "\u0093": '"', "\u0094": '"',
    "\u00bc": " 1/4 ", "\u00bd": " 1/2 ", "\u00be": " 3/4 ", "\u2153": " 1/3 ", "\u2154": " 2/3 ",
    "\u00a2": " cents ", "\u00a3": " # ", "\u20ac": " $ ",
    "\u00ad": "", "\ufe0f": "", "\u200b": " ",
})  # fmt: skip
"""Characters that are replaced before tokenization."""

ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
ENTITY = re.compile("|".join(ENTITIES), re.IGNORECASE)
UNKNOWN = re.compile(r"[\U00010000-\U0010ffff\ufffd]")
"""Characters that PTBTokenizer drops: emoji and all others outside the basic multilingual plane."""

ABBREVIATIONS = (
    "mr mrs ms dr st ave rd co cos corp inc ltd bros dept univ jr sr vs etc ft mt tel blvd gen col capt lt sgt gov "
    "sen rep pres rev hon prof adm brig bldg ct est esq ext al alex ind ga mo md messrs mme assn cf seq sq wis jan "
    "feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri"
)
"""Words that keep their period."""
CAPITAL_ABBREVIATIONS = (
    "Ala Ariz Ark Calif Colo Conn Del Fla Ill Kan Ky La Mass Mich Minn Miss Mont Neb Nev Okla Ore Pa Penn Tenn Tex Va "
    "Vt Wash Wyo"
)
"""Words that keep their period only if capitalized. For example, "wash." is not an abbreviation."""

MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff\u0e31-\u0e4e"
SMALL = "\u00b9\u00b2\u00b3"
LETTER = rf"(?:[^\W\d_{SMALL}]|[{MARKS}])"
WORD = rf"(?:[^\W{SMALL}]|[{MARKS}])+"
HYPHEN = "[-\u2010\u2011]"
NUMBER = r"\d+(?:[.,:/]\d+)+"
INITIALS = r"(?:[A-Za-z]\.){2,}(?!\w)"
CLITIC = r"'(?i:s|d|m|ll|re|ve)(?!\w)"


def _either(words: str) -> str:
    """Build a pattern that matches any of the words."""
    return "|".join(words.split())


KEEPS_STOP = f"(?i:{_either(ABBREVIATIONS)})|{_either(CAPITAL_ABBREVIATIONS)}|{_either(CAPITAL_ABBREVIATIONS.upper())}"

TOKEN = re.compile(
    rf"""
      </?[A-Za-z][^<>]*> | (?i:-[lr][rsc]b-) | \(\d{{3}}\)(?=\s?\d{{3}}-\d{{4}}\b)    # tags, brackets, area codes
    | (?i:https?://|www\.)[^\s"<>|(){{}}]*[\w/=] | [\w.+-]{{1,64}}@\w+(?:[.-]\w+)*\.[A-Za-z]+     # addresses
    | [@\#][A-Za-z]\w*
    | [:;=]-?[()DPdp](?!\w)                                                # smileys
    | (?:{LETTER}\w*{HYPHEN})?{INITIALS}(?:{HYPHEN}(?:{INITIALS}|{WORD}))* | (?i:ph\.d\.)    # initials
    | [A-Za-z]\.(?![^\W\d]) | (?:{KEEPS_STOP})\.(?!\w)(?:{HYPHEN}{WORD})*
    | (?i:nos?|figs?|pp?)\.(?=\s?\d)
    | (?i:can(?=not\b)|gon(?=na\b)|got(?=ta\b)|wan(?=na\b)|gim(?=me\b)|lem(?=me\b))(?!\w+{HYPHEN})
    | (?i:'t(?=is\b|was)|e'er|ev'ry|li'l|nat'l|cap'n|nor'easter|c'mon|s'mores|[yj]'(?=\w\w)|ol'|somethin'|dunkin')
    | '(?i:n'|(?:em|till?|cause|n)(?!\w)) | (?<!\w)'(?:\d0s|\d\d)(?![\w'])
    | \w+?(?=(?i:n't)(?!\w)) | (?i:n't)(?!\w) | {CLITIC}
    | (?:[A-HJ-XZ]|[dlno])(?!{CLITIC})'{LETTER}{{2,}}
    | {LETTER}*?[aeiouyAEIOUY](?!{CLITIC})'[aeiouA-Z]{LETTER}*
    | [A-Z]+(?:&[A-Z]+)+ | [Cc](?:\#|\+\+)
    | {LETTER}\w*(?:\.{LETTER}\w*)+(?:{HYPHEN}{WORD})*                     # words joined by full stops
    | US\$ | (?:(?<![\w)])[-+])?[.,:]?(?:{NUMBER}|\d+(?![\w/]))(?:{HYPHEN}(?:{NUMBER}|{WORD}))*
    | {WORD}(?:(?:{HYPHEN}|/)(?:{NUMBER}|{WORD}))*
    | --+ | \.\.\.+ | [!?]+ | \*+ | >> | << | \S
    """,
    re.VERBOSE,
)


def split_words(caption: str) -> list[str]:
    """Split a caption into words."""
    text = ENTITY.sub(lambda entity: ENTITIES[entity.group().lower()], UNKNOWN.sub(" ", caption)).translate(SYMBOLS)
    tokens = (part for token in TOKEN.finditer(text) for part in token.group().split())  # tags may have spaces
    return [token.lower().translate(BRACKETS) for token in tokens if token not in PUNCTUATION and token.strip("-.")]


__all__ = ["split_words"]
