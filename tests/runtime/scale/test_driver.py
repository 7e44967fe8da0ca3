"""The driver: retries, the search for the item that kills, and an end where all workers die."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from flawscope.errors import FlawscopeError
from flawscope.runtime.scale.driver import MOST_DEATHS, RETRIES, RETRIES_ALONE, Driver, Outcome, halves
from flawscope.runtime.scale.plan import Plan
from flawscope.runtime.scale.task import Died, Done, Failed, Task


@dataclass
class Hands:
    """Work and executor at once, without files: items in `deadly` kill, and `deaths` die by chance before that."""

    deadly: frozenset[int] = frozenset()
    deaths: int = 0
    slots: int = 2
    grain: int = 1
    whole_parts: frozenset[Task] = frozenset()
    fails_at: int = -1
    tried: list[Task] = field(default_factory=list)
    joined: list[tuple[Task, list[Task]]] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    queue: deque[Task] = field(default_factory=deque)
    most_at_work: int = 0

    def submit(self, task: Task) -> None:
        self.queue.append(task)
        self.tried.append(task)
        self.most_at_work = max(self.most_at_work, len(self.queue))

    def wait(self) -> list[Done | Died | Failed]:
        task = self.queue.popleft()
        if self.deaths:
            self.deaths -= 1
            return [Died(task, "killed by signal 9")]
        if task.first <= self.fails_at < task.stop:
            return [Failed(task, "disk: full.")]
        if self.deadly & set(range(task.first, task.stop)):
            return [Died(task, "killed by signal 11")]
        return [Done(task, {"accept": task.items})]

    def whole(self, task: Task) -> Done | None:
        return Done(task, {"accept": task.items}) if task in self.whole_parts else None

    def give_up(self, task: Task, reason: str) -> Done:
        assert task.items == 1
        return Done(task, {"fault": 1})

    def join(self, shard: Task, parts: Sequence[Done]) -> Done:
        self.joined.append((shard, [part.task for part in parts]))
        counts: dict[str, int] = {}
        for part in parts:
            for name, count in part.counts.items():
                counts[name] = counts.get(name, 0) + count
        return Done(shard, counts)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *raised: object) -> None: ...


def plan_of(items: int, shard_size: int) -> Plan:
    return Plan(kind="score", asked={}, items=items, shard_size=shard_size)


def drive(hands: Any, plan: Plan) -> Outcome:
    return Driver(hands, hands, lambda done, total: None).run(plan.tasks(), plan.items)


def totals(outcome: Outcome) -> dict[str, int]:
    counts = {"accept": 0, "fault": 0}
    for done in outcome.done.values():
        for name, count in done.counts.items():
            counts[name] += count
    return counts


def test_every_shard_is_done_once_and_no_more_are_at_work_than_there_are_slots() -> None:
    hands, shown = Hands(slots=3), list[tuple[int, int]]()
    outcome = Driver(hands, hands, lambda *counts: shown.append(counts)).run(plan_of(100, 8).tasks(), 100)  # type: ignore[arg-type]
    assert sorted(outcome.done) == list(range(13)) == sorted(task.shard for task in hands.tried)
    assert totals(outcome) == {"accept": 100, "fault": 0}
    assert hands.most_at_work == 3
    assert shown[-1] == (100, 100)


def test_a_shard_is_tried_again_twice_and_not_cut_where_that_helps() -> None:
    hands = Hands(deaths=RETRIES, slots=1)
    outcome = drive(hands, plan_of(8, 8))
    assert hands.tried == [Task(0, 0, 8)] * (RETRIES + 1)
    assert (len(outcome.deaths), outcome.given_up, hands.joined) == (RETRIES, [], [])


@pytest.mark.parametrize("deadly", [0, 37, 63, 64, 99])
@pytest.mark.parametrize("slots", [1, 3])
def test_the_item_that_kills_is_found_and_all_others_are_done(deadly: int, slots: int) -> None:
    hands = Hands(frozenset({deadly}), slots=slots)
    outcome = drive(hands, plan_of(100, 64))
    assert outcome.given_up == [deadly]
    assert totals(outcome) == {"accept": 99, "fault": 1}
    ((shard, parts),) = hands.joined
    assert [n for part in parts for n in range(part.first, part.stop)] == list(range(shard.first, shard.stop))
    assert Task(shard.shard, deadly, deadly + 1) in parts
    # Tries of the shard, one of each half on the way, and those of the item itself: never for ever.
    assert len(outcome.deaths) <= 1 + RETRIES + 6 + 1 + RETRIES_ALONE


def test_several_items_that_kill_in_one_shard_are_all_found() -> None:
    outcome = drive(Hands(frozenset({3, 4, 40})), plan_of(64, 64))
    assert sorted(outcome.given_up) == [3, 4, 40]
    assert totals(outcome) == {"accept": 61, "fault": 3}


def test_one_item_alone_that_kills_is_a_fault_too() -> None:
    outcome = drive(Hands(frozenset({0})), plan_of(1, 256))
    assert (outcome.given_up, totals(outcome)) == ([0], {"accept": 0, "fault": 1})


def test_nothing_is_given_up_where_workers_die_of_everything() -> None:
    hands = Hands(frozenset(range(1000)))
    driver = Driver(hands, hands, lambda done, total: None)  # type: ignore[arg-type]
    with pytest.raises(FlawscopeError, match=f"got {MOST_DEATHS} workers that died one after the other.*signal 11.*"):
        driver.run(plan_of(1000, 10).tasks(), 1000)
    assert driver.outcome.given_up == []
    assert len(hands.tried) <= MOST_DEATHS + hands.slots


def test_an_error_that_no_repetition_mends_ends_the_run_with_its_message() -> None:
    hands = Hands(fails_at=20, slots=1)
    with pytest.raises(FlawscopeError, match=r"disk: full\."):
        drive(hands, plan_of(100, 10))
    assert len(hands.tried) == 3


def test_parts_that_an_earlier_run_left_whole_are_not_done_again() -> None:
    left = Task(0, 0, 32)
    hands = Hands(frozenset({40}), whole_parts=frozenset({left}), slots=1)
    outcome = drive(hands, plan_of(64, 64))
    assert left not in hands.tried
    assert totals(outcome) == {"accept": 63, "fault": 1}


def test_a_shard_is_cut_between_batches_until_one_batch_is_left() -> None:
    assert halves(Task(1, 256, 512), 8) == [Task(1, 256, 384), Task(1, 384, 512)]
    assert halves(Task(1, 256, 280), 8) == [Task(1, 256, 264), Task(1, 264, 280)]
    assert halves(Task(1, 256, 267), 8) == [Task(1, 256, 264), Task(1, 264, 267)]
    assert halves(Task(1, 256, 264), 8) == [Task(1, 256, 260), Task(1, 260, 264)]
    assert halves(Task(0, 4, 6), 1) == [Task(0, 4, 5), Task(0, 5, 6)]
