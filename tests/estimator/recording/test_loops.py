"""Loops in a recording become one statement."""

from __future__ import annotations

from collections.abc import Sequence

from lorabench.estimator.recording.loops import Statement, Value, folded


def _scan(tokens: int) -> list[Statement]:
    """Return what is recorded of ``for index in range(tokens): state = x[index] + state``, with x 0 and state 1."""
    statements = [Statement("zeros", (Value(1),), [8])]
    for at in range(tokens):
        part, before, state = 2 * at + 2, 2 * at + 1, 2 * at + 3
        statements += [
            Statement("__getitem__", (Value(part),), [Value(0), 0]),
            Statement("add", (Value(state),), [Value(part), Value(before)]),
            Statement("del", (Value(part),), ()),
            Statement("del", (Value(before),), ()),
        ]
    return [*statements, Statement("exp", (Value(2 * tokens + 2),), [Value(2 * tokens + 1)])]


def _collected(tokens: int) -> list[Statement]:
    """Return what is recorded of ``stack([exp(x[index]) for index in range(tokens)])``, with x 0."""
    statements: list[Statement] = []
    for at in range(tokens):
        statements += [
            Statement("__getitem__", (Value(2 * at + 1),), [Value(0), 0]),
            Statement("exp", (Value(2 * at + 2),), [Value(2 * at + 1)]),
            Statement("del", (Value(2 * at + 1),), ()),
        ]
    outputs = [Value(2 * at + 2) for at in range(tokens)]
    statements.append(Statement("stack", (Value(2 * tokens + 1),), [outputs]))
    return [*statements, *(Statement("del", (output,), ()) for output in outputs)]


def test_a_loop_is_one_statement_whose_iterations_pass_the_state_on() -> None:
    zeros, loop, exp = folded(_scan(9))
    times, body, carried = loop.positional
    assert (zeros.function, loop.function, exp.function) == ("zeros", "loop", "exp")
    assert times == 9
    assert [each.function for each in body] == ["__getitem__", "add", "del", "del"]
    assert carried == [[Value(3), Value(1)]]


def test_after_a_loop_the_last_state_has_the_name_of_the_first() -> None:
    *_, exp = folded(_scan(9))
    assert exp.positional == [Value(3)]


def test_what_all_iterations_leave_is_one_list() -> None:
    gather, loop, stack, dropped = folded(_collected(7))
    assert gather == Statement("collect", (Value(2),))
    assert loop.positional[0] == 7
    assert stack.positional == [[["each", Value(2)]]]
    assert dropped == Statement("del", (Value(2),), ())


def test_a_longer_loop_differs_in_its_number_of_iterations_alone() -> None:
    for recorded in (_scan, _collected):
        short, long = (_without_counts(folded(recorded(tokens))) for tokens in (5, 11))
        assert [each[1:] for each in short[:-2]] == [each[1:] for each in long[:-2]]
        assert [each[0] for each in short] == [each[0] for each in long]


def _without_counts(statements: Sequence[Statement]) -> list[tuple[object, ...]]:
    return [
        (each.function, each.results, each.positional[1:] if each.function == "loop" else each.positional)
        for each in statements
    ]


def test_a_state_from_two_iterations_ago_makes_no_loop_of_one_iteration_each() -> None:
    statements = [Statement("add", (Value(at),), [Value(at - 1 if at % 2 else at - 2)]) for at in range(2, 12)]
    assert [each.function for each in folded(statements)].count("loop") <= 1


def test_what_is_no_loop_stays_as_it_is() -> None:
    statements = [Statement(name, (Value(number),), [Value(0)]) for number, name in enumerate("abcdef", 1)]
    assert folded(statements) == statements
