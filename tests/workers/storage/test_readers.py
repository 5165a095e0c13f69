"""The pool gives every result in order, whoever asks, and an error to the one who asked."""

import threading
from collections.abc import Callable

import pytest

from workers.storage.readers import Readers


def test_results_come_in_the_order_of_the_tasks() -> None:
    for threads in (1, 2, 5):
        pool = Readers(threads)
        tasks: list[Callable[[], int]] = [lambda number=number: number * number for number in range(100)]
        assert pool.run(tasks) == [number * number for number in range(100)]
        assert pool.run([]) == []
        pool.close()


def test_tasks_run_side_by_side() -> None:
    pool = Readers(3)
    all_there = threading.Barrier(3)
    assert sorted(pool.run([lambda: all_there.wait(20)] * 3)) == [0, 1, 2]
    pool.close()


def test_a_task_may_ask_the_same_pool() -> None:
    pool = Readers(2)

    def outer() -> int:
        return sum(pool.run([lambda: 1] * 5))

    assert pool.run([outer] * 20) == [5] * 20
    pool.close()


def test_many_ask_at_once() -> None:
    pool = Readers(2)
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(50):
            if pool.run([lambda: number] * 7) != [number] * 7:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
    pool.close()


def test_an_error_ends_the_job_of_the_one_who_asked_and_nothing_else() -> None:
    pool = Readers(2)
    begun: list[int] = []

    def task(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("block 3")
        return number

    with pytest.raises(ValueError, match="block 3"):
        pool.run([lambda number=number: task(number) for number in range(1000)])
    assert len(begun) < 1000
    assert pool.run([lambda: 1, lambda: 2]) == [1, 2]
    pool.close()
