from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.runtime.line.outputs import registers as at
from flawscope.runtime.line.outputs.output import Signal, State
from flawscope.runtime.line.outputs.registers import NO_SCORE, STATE_CODES, Registers


def values_of(registers: Registers) -> list[int]:
    values = [0] * (at.SIZE + 1)
    registers.copy_to(values)
    assert len(values) == at.SIZE + 1
    return values


def number(values: list[int], address: int) -> int:
    return values[address] << 16 | values[address + 1]


def signed(values: list[int], address: int) -> int:
    plain = number(values, address)
    return plain - 2**32 if plain >= 2**31 else plain


def test_every_state_has_a_number_of_its_own_and_ready_alone_is_six() -> None:
    assert set(STATE_CODES) == set(get_args(State))
    assert len(set(STATE_CODES.values())) == len(STATE_CODES)
    registers = Registers()
    assert values_of(registers)[at.STATE] == 0
    for state, code in STATE_CODES.items():
        registers.state(state)
        assert values_of(registers)[at.STATE] == code
        assert (code == 6) == (state == "ready")


def test_before_the_first_verdict_there_is_none() -> None:
    values = values_of(Registers())
    assert values[at.VERDICT] == 0
    assert number(values, at.SEQ) == 0
    assert signed(values, at.SCORE) == NO_SCORE


def test_a_verdict_is_written_with_all_that_belongs_to_it() -> None:
    registers = Registers()
    registers.verdict(Signal(70_000, "4000000000", "fault", "overrun", None))
    values = values_of(registers)
    assert number(values, at.SEQ) == 70_000
    assert values[at.VERDICT] == 3
    assert values[at.REASON] == 1
    assert signed(values, at.SCORE) == NO_SCORE
    assert number(values, at.PART_ID) == 4_000_000_000
    registers.verdict(Signal(70_001, "bolt-7", "accept", "", -1.2345))
    values = values_of(registers)
    assert (number(values, at.SEQ), values[at.VERDICT], values[at.REASON]) == (70_001, 1, 0)
    assert signed(values, at.SCORE) == -1234
    assert number(values, at.PART_ID) == 0
    assert values[at.COUNT] == 2


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (None, NO_SCORE),
        (math.nan, NO_SCORE),
        (math.inf, 2**31 - 1),
        (-math.inf, -(2**31) + 1),
        (1e30, 2**31 - 1),
        (-1e30, -(2**31) + 1),
        (0.0, 0),
    ],
)
def test_scores_are_cut_off_and_none_has_a_number_of_its_own(score: float | None, expected: int) -> None:
    registers = Registers()
    registers.verdict(Signal(1, "", "reject", "", score))
    assert signed(values_of(registers), at.SCORE) == expected


@settings(max_examples=30)
@given(st.text(max_size=12))
def test_any_name_of_a_part_has_a_number_or_none(part_id: str) -> None:
    registers = Registers()
    registers.verdict(Signal(1, part_id, "accept", "", 0.0))
    shown = number(values_of(registers), at.PART_ID)
    assert shown == 0 or int(part_id) == shown


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["accept", "reject", "fault"]), min_size=1, max_size=40))
def test_the_last_sixteen_verdicts_stand_newest_first(verdicts: list[str]) -> None:
    registers = Registers()
    for seq, verdict in enumerate(verdicts, start=1):
        registers.verdict(Signal(seq, "", verdict, "deadline" if verdict == "fault" else "", None))  # type: ignore[arg-type]
    values = values_of(registers)
    expected = list(enumerate(verdicts, start=1))[::-1][: at.RING_PARTS]
    codes = {"accept": (1, 0), "reject": (2, 0), "fault": (3, 2)}
    for place in range(at.RING_PARTS):
        entry = values[at.RING + place * at.RING_WIDTH :][: at.RING_WIDTH]
        if place < len(expected):
            seq, verdict = expected[place]
            assert (number(entry, 0), *entry[2:]) == (seq, *codes[verdict])
        else:
            assert entry == [0, 0, 0, 0]
    assert values[at.COUNT] == len(verdicts)


def test_what_has_been_cleared_is_no_verdict() -> None:
    registers = Registers()
    registers.state("ready")
    registers.verdict(Signal(5, "", "accept", "", 0.5))
    registers.clear_verdict()
    values = values_of(registers)
    assert values[at.VERDICT] == number(values, at.SEQ) == 0
    assert values[at.STATE] == 6
    assert number(values, at.RING) == 5
    registers.clear()
    values = values_of(registers)
    assert values[at.STATE] == 0
    assert not any(values[at.RING : at.SIZE])


def test_numbers_go_round_instead_of_over_their_registers() -> None:
    registers = Registers()
    registers.verdict(Signal(2**32 + 3, "", "reject", "", None))
    assert number(values_of(registers), at.SEQ) == 3
    for _ in range(0x10001):
        registers.beat()
    assert values_of(registers)[at.HEARTBEAT] == 1
