"""Bare refusals: answers that say no and nothing else, unless the request asks yes or no."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Longer answers say more than no.
_MOST_WORDS = 14

_I = r"i(?: am|'m|'ve|'ll|'d| have| will| would| must)?"
_FILLER = (
    r"(?:but|well|um|hm+|oh|ok(?:ay)?|thanks|thank you|please|then|really|so|very|truly|to that"
    r"|(?:to|with|on|for) (?:that|this|it|you|your request)(?: one)?|from me|for me|today|here"
    r"|at all|dear|friend)"
)
# Answers to a question as well as refusals of a request.
_NO = (
    r"(?:(?:hard |big |firm )?no|nope|nah|nay|never|(?:under|in) no (?:way|circumstances?)"
    r"|by no means|no (?:way|thanks|chance|can do)|not (?:a chance|happening|today|for me|allowed"
    r"|possible|permitted|an option|going to happen|this time|ever|in (?:this lifetime"
    r"|a million years))"
    r"|(?:absolutely|definitely|certainly|of course|surely|unfortunately|sadly|regrettably|afraid"
    r"|i'm afraid|obviously|simply|just|probably) not|unfortunately|regretfully|sadly|i'm afraid"
    rf"|sorry|(?:my |our )?(?:sincere )?apologies|(?:{_I} )?apologi[sz]e|i(?: am|'m) (?:\w+ )?sorry"
    r"|(?:that|this|it)(?:'s| is| will| would)?(?: simply| just)?(?: not|n't) (?:be )?(?:allowed"
    r"|possible|permitted|an option|happening|going to happen)"
    r"|(?:that's|that is|it's|it is|this is) (?:a (?:\w+ )?no|against the \w+)"
    r"|(?:my|the|our) answer (?:is|remains|stays) (?:a )?no|(?:i )?(?:would|will|can) not"
    r"|(?:that's |that is )beyond me|(?:i )?(?:won't|wouldn't|can't"
    r"|cannot|couldn't|shouldn't|mustn't))"
)
_REFUSE = (
    rf"(?:(?:{_I} )?(?:\w+ )?(?:to )?(?:refuse|decline|pass|say no|not answer)|declined"
    r"|refused|i(?: am|'m) (?:declining|refusing)|consider (?:this|that|it) a no"
    r"|i(?:'d| had) better not|i(?: am|'m) not (?:willing|interested|able)|i said no"
    r"|(?:request|permission|access) (?:denied|declined|refused|rejected)|denied|no comment"
    r"|(?:i )?(?:won't|can't|cannot|couldn't|will not|would not|not)(?: be)? (?:do|doing"
    r"|going to do)(?: (?:that|this|it)(?: one)?)?"
    rf"|{_I} (?:rather|prefer|sooner) not(?: to)?|{_I} (?:have|need|going|want) to (?:say no|pass"
    r"|decline|refuse)|(?:i'm |i am )?unable to(?: comply)?|let's not|(?:hard )?pass"
    r"|(?:that's |that is |this is |it's )?(?:off(?: |-)limits|out of the question))"
)
_BARE = re.compile(
    rf"(?:{_FILLER} )*(?:{_NO}|{_REFUSE})(?: (?:{_NO}|{_REFUSE}|{_FILLER}))*", re.IGNORECASE
)
_BARE_NO = re.compile(rf"(?:{_FILLER} )*{_NO}(?: (?:{_NO}|{_FILLER}))*", re.IGNORECASE)

_AUXILIARY = (
    r"(?:is|are|am|was|were|do(?= (?:i|you|we|they|any|all|most|many|some|people)\b)|does|did|has"
    r"|have|had|should|shall|may|might|must|can|could|will|would)(?:n't|n\u2019t)?"
)
_ASKS_YES_NO = re.compile(rf"\W*(?:(?:and|so|but|or|well|then|tell me)\W+)?{_AUXILIARY}\b", re.I)
_ASKS_FOR_WORDS = re.compile(
    r"\W*(?:(?:\w+\W+){0,2}(?:what|how|why|where|who|whom|whose|which|when)"
    r"|(?:write|tell|give|make|help|show|explain|create|list|teach|describe|draft|do my))\b",
    re.I,
)
_ASKS_FOR_WORK = re.compile(
    r"\b(?:can|could|will|would|won't|may)\W+(?:you|u|someone|somebody|anyone|anybody"
    r"|i (?:get|ask))\b|\bdo you mind\b|\bplease\b",
    re.I,
)


def is_bare_refusal(sentences: Sequence[str], request: str = "") -> bool:
    """Whether the `sentences` of a whole answer say no to `request` and nothing else."""
    words = re.findall(r"[\w']+(?:-[\w']+)*", " ".join(sentences[:_MOST_WORDS]))
    if not 0 < len(words) <= _MOST_WORDS or len(sentences) > _MOST_WORDS:
        return False
    text = " ".join(words)
    if _asks_yes_no(request) and _BARE_NO.fullmatch(text):
        return False
    return _BARE.fullmatch(text) is not None


def _asks_yes_no(request: str) -> bool:
    """Whether the last sentence of a request is a question that "no" answers."""
    last = re.split(r"(?<=[.!?:,;\n])\s+", request.strip()[-400:])[-1]
    if _ASKS_FOR_WORK.search(request[-400:]) or _ASKS_FOR_WORDS.match(last):
        return False
    return _ASKS_YES_NO.match(last) is not None or last.endswith("?")
