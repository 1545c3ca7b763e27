"""What is asked of the parsers, whatever they are given: no exception, no hang, and nothing comes out that is not printable."""

from __future__ import annotations

import math
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from fuzz_inputs import CANARY, Input

from tokenkeeper import providers
from tokenkeeper.core.challenge import parse_challenges
from tokenkeeper.core.diagnosis import diagnose, explain
from tokenkeeper.core.incident import incident_record
from tokenkeeper.core.profile import Profile
from tokenkeeper.core.token_endpoint import (
    TokenSet,
    answer_members,
    parse_token_response,
    read_introspection,
    read_revocation,
    read_token_answer,
)
from tokenkeeper.errors import ConfigurationError
from tokenkeeper.model import Answer, Diagnosis, Surface
from tokenkeeper.providers.loader import parse_sheet

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MILLISECONDS_A_KIB = 2.0
FLOOR_MILLISECONDS = 10.0
"""What any input may take: a timer's grain, a collection of garbage."""
TRACED = 5
"""How much longer anything may take while coverage is measured."""
PEAK_MIB = 32.0
LARGE = 64 * 1024
"""The size of the inputs whose memory is measured (which takes its time)."""

T = TypeVar("T")


class Found(Exception):
    """Something is wrong; says what."""


@dataclass(slots=True)
class Judge:
    """Runs the parsers on inputs; remembers the longest times."""

    slowest: float = 0.0
    """Milliseconds a KiB, of inputs of 4 KiB and more."""
    longest: float = 0.0
    """Milliseconds of one call."""
    peak: float = 0.0
    """MiB of one call."""

    def answer(self, given: Input, *, thorough: bool) -> None:
        """Run the classifier, the challenge parser and the reader of token answers. Raises Found, or what they raise."""
        profile = _profile(given.provider)
        surface = Surface(given.surface)
        answer = self._timed(given, lambda: providers.make_answer(given.status, given.headers, given.body))
        self._timed(given, lambda: parse_challenges([value for _, value in given.headers]))
        found = self._timed(
            given, lambda: diagnose(answer, profile.rules, surface=surface, now=NOON, secrets=(CANARY,))
        )
        look_at_diagnosis(found)
        read = self._timed(given, lambda: read_token_answer(answer, profile, now=NOON, secrets=(CANARY,)))
        look_at_tokens(read) if isinstance(read, TokenSet) else look_at_diagnosis(read)
        if thorough:
            self._thorough(given, answer, profile, surface)

    def _thorough(self, given: Input, answer: Answer, profile: Profile, surface: Surface) -> None:
        said = self._timed(given, lambda: explain(answer, profile.rules, surface=surface, now=NOON))
        look_at_texts(_texts_of(said.diagnosis), canary=False)
        look_at_texts((text for miss in said.near for text in miss.failed), canary=False)
        unindexed = profile.rules.candidates(surface, answer.status)
        if said.rule not in unindexed:
            raise Found(f"{said.rule.name} decided, which is no candidate")
        self._timed(given, lambda: read_introspection(answer))
        revoked = self._timed(given, lambda: read_revocation(answer, profile, secrets=(CANARY,)))
        if isinstance(revoked, Diagnosis):
            look_at_diagnosis(revoked)
        strict = self._timed(given, lambda: parse_token_response(answer_members(answer), strict=True))
        if isinstance(strict, str):
            look_at_texts([strict])
        record = self._timed(
            given,
            lambda: incident_record(
                answer, method="GET", url=given.headers[0][1] if given.headers else None, request_headers=given.headers,
                client_id="c", at=NOON, secrets=(CANARY,),
            ),
        )  # fmt: skip
        look_at_texts(_strings(record))

    def sheet(self, name: str, data: bytes) -> None:
        """Load a profile's file: it is one, or the complaint can be printed."""
        given = Input(name, "api", 0, (), data)
        try:
            self._timed(given, lambda: parse_sheet(data, name, "acme.toml"))
        except ConfigurationError as error:
            look_at_texts([str(error), error.fix], canary=False)

    def _timed(self, given: Input, call: Callable[[], T]) -> T:
        """Call, in the processor's time; what was slow is called again, for it may have been something else."""
        start = time.process_time()
        result = call()
        taken = (time.process_time() - start) * 1000
        kib = given.size / 1024
        most = (FLOOR_MILLISECONDS + MILLISECONDS_A_KIB * kib) * (1 if sys.gettrace() is None else TRACED)
        if taken > most / 4 and taken > self.longest / 2:
            for _ in range(3):
                start = time.process_time()
                call()
                taken = min(taken, (time.process_time() - start) * 1000)
            if taken > most:
                raise Found(f"{taken:.0f} ms for {kib:.1f} KiB")
        if given.size >= LARGE and taken > 1:
            self._measured(call)
        self.longest = max(self.longest, taken)
        if kib >= 4:
            self.slowest = max(self.slowest, taken / kib)
        return result

    def _measured(self, call: Callable[[], object]) -> None:
        """Call again, for the memory that it takes at its peak."""
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()
        self.peak = max(self.peak, peak)
        if peak > PEAK_MIB:
            raise Found(f"takes {peak:.0f} MiB")


_profiles: dict[str, Profile] = {}


def _profile(name: str) -> Profile:
    if name not in _profiles:
        _profiles[name] = providers.load_profile(name)
    return _profiles[name]


def look_at_diagnosis(found: Diagnosis) -> None:
    """Every text of a diagnosis is printable, and its wait a number of seconds."""
    look_at_texts(_texts_of(found))
    if found.retry_after is not None and not (math.isfinite(found.retry_after) and found.retry_after >= 0):
        raise Found(f"retry_after is {found.retry_after!r}")
    if len(found.message) > 1000:
        raise Found(f"a message of {len(found.message)} characters")


def _texts_of(found: Diagnosis) -> Iterator[str]:
    yield from (found.rule, found.message, found.fix, *found.scopes)
    yield from (text for text in (found.error_code, found.acr_values, found.claims) if text is not None)


def look_at_tokens(found: TokenSet) -> None:
    """What a token answer says beside the tokens is printable, and its times are times."""
    look_at_texts((*(found.scopes or ()), found.token_type or "", found.account or "", repr(found)), canary=False)
    for seconds in (found.expires_in, found.expires_at, found.refresh_expires_in):
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise Found(f"a lifetime of {seconds!r}")


def look_at_texts(texts: Any, *, canary: bool = True) -> None:
    """No control or format character (so no escape sequence, no bidi control), no lone surrogate, no token that was sent."""
    for text in texts:
        if not text.isprintable():
            raise Found(f"not printable: {text!r}")
        if canary and CANARY in text:
            raise Found(f"the token that was sent is shown: {text!r}")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
