"""The rules of a session under random legal and illegal events: `lifecycle`, `turn` and `intake` together.

The machine plays both sides, client and harness, through the same pure functions that the api and the loop call, and
after every step holds the resulting log against what the contract promises about logs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from corral.domain import event as ev
from corral.domain import intake, turn
from corral.domain.ids import new_id
from corral.domain.lifecycle import TRANSITIONS, Append, Change, IllegalTransition, Process, commit, fold
from corral.domain.session import SessionState
from corral.domain.usage import RequestTokens, list_cost_microdollars, snapshot, totals_of
from corral.errors import Invalid
from tests.unit import builders as make

ERRORS = {
    True: ev.ErrorObject(type="model_overloaded_error", message="busy", retry_status=ev.Retrying()),
    False: ev.ErrorObject(type="model_request_failed_error", message="no", retry_status=ev.Exhausted()),
}


LIMITS = turn.Limits(rounds_max=8, compact_above_tokens=100)


def type_of(event: ev.AnyEvent) -> str:
    return str(event.__struct_config__.tag)


class SessionMachine(RuleBasedStateMachine):
    """A client and a harness that do whatever they may, and some things they may not."""

    def __init__(self) -> None:
        super().__init__()
        self.session = make.session()
        self.state = make.state()
        self.now = make.START
        self.step: turn.Step = turn.Rest()
        self.log: list[ev.AnyEvent] = []
        self.waiting: dict[str, ev.AnyEvent] = {}
        self.accepted: list[str] = []

    # ------------------------------------------------------------------------------------------ the client

    @rule(count=st.integers(1, 3))
    def client_sends_messages(self, count: int) -> None:
        self.client_sends([make.message() for _ in range(count)])

    @rule(then_message=st.booleans())
    def client_interrupts(self, then_message: bool) -> None:
        self.client_sends([make.interrupt(), *([make.message()] if then_message else [])])

    @rule(data=st.data())
    def client_answers(self, data: st.DataObject) -> None:
        known = [*(call.id for call in self.state.pending), "sevt_unknown"]
        call_id = data.draw(st.sampled_from(known))
        kind = data.draw(st.sampled_from(["allow", "deny", "result"]))
        answer = make.custom_result(call_id) if kind == "result" else make.confirmation(call_id, allow=kind == "allow")
        self.client_sends([answer])

    @rule()
    def client_sends_a_good_and_a_bad_event(self) -> None:
        before = self.state
        with pytest.raises(Invalid):
            events = [make.message(), make.confirmation("sevt_unknown")]
            intake.accept(self.session, self.state, events, self.now)
        assert self.state is before

    def client_sends(self, events: Sequence[ev.ClientEvent]) -> None:
        try:
            changes = intake.accept(self.session, self.state, events, self.now)
        except Invalid:
            return
        self.accepted += [event.id for event in events if isinstance(event, ev.UserMessage)]
        self.write(changes)

    # ----------------------------------------------------------------------------------------- the harness

    @rule(died=st.booleans())
    def harness_looks(self, died: bool) -> None:
        """Wake up, or wake up in place of a worker that died: both are a commit of nothing."""
        if died or isinstance(self.step, turn.Rest):
            self.harness_commits([])

    @precondition(lambda self: isinstance(self.step, turn.AskModel))
    @rule(calls=st.lists(st.sampled_from(["allow", "ask", "custom"]), max_size=3), long=st.booleans())
    def model_answers(self, calls: list[str], long: bool) -> None:
        assert isinstance(self.step, turn.AskModel)
        tokens = RequestTokens(input_tokens=1_000 if long else 1)
        uses = [make.custom_use() if kind == "custom" else make.tool_use(kind) for kind in calls]  # pyright: ignore[reportArgumentType]  # drawn from permissions
        self.harness_commits([*map(Append, uses), Append(make.answer_end(self.step.request_id), tokens=tokens)])

    @precondition(lambda self: isinstance(self.step, turn.Compact))
    @rule()
    def the_conversation_is_condensed(self) -> None:
        assert isinstance(self.step, turn.Compact)
        end = Append(make.answer_end(self.step.request_id), tokens=RequestTokens(input_tokens=1))
        self.harness_commits([end, Append(ev.AgentThreadContextCompacted(id=new_id("sevt")))])

    @precondition(lambda self: isinstance(self.step, turn.AskModel))
    @rule()
    def the_prompt_does_not_fit(self) -> None:
        self.harness_commits(turn.overflow(self.state))

    @precondition(lambda self: isinstance(self.step, turn.AskModel | turn.Compact))
    @rule(retry=st.booleans())
    def model_fails(self, retry: bool) -> None:
        self.harness_commits(turn.fail_request(self.session, self.state, ERRORS[retry], self.now))

    @precondition(lambda self: isinstance(self.step, turn.RunCalls))
    @rule()
    def a_call_finishes(self) -> None:
        assert isinstance(self.step, turn.RunCalls)
        call = self.step.calls[0]
        if self.state.call(call.id) is not None:
            done = turn.denied_result(call) if call.stage == "denied" else Append(make.result(call.id))
            self.harness_commits([done])

    @precondition(lambda self: isinstance(self.step, turn.Backoff))
    @rule()
    def the_wait_is_over(self) -> None:
        if self.state.status == "rescheduling":
            self.harness_commits(turn.resume(self.session, self.state))

    def harness_commits(self, changes: Sequence[Change]) -> None:
        decision = turn.proceed(self.session, self.state, changes, LIMITS, self.now)
        self.write(decision.changes)
        self.step = decision.step

    # --------------------------------------------------------------------------------------------- the log

    def write(self, changes: Sequence[Change]) -> None:
        done = commit(self.state, changes, self.now)
        for change, row in zip(changes, done.rows, strict=True):
            match change:
                case Process(event_id):
                    self.log.append(self.waiting.pop(event_id))
                case Append(event, queued=True):
                    self.waiting[event.id] = event
                case Append():
                    assert row.event is not None
                    self.log.append(row.event)
        assert [row.seq for row in done.rows] == list(range(self.state.seq + 1, done.state.seq + 1))
        self.state = done.state
        self.now += timedelta(seconds=1)

    @invariant()
    def statuses_follow_the_table(self) -> None:
        status = "idle"
        for event in self.log:
            if type_of(event) in {name for row in TRANSITIONS.values() for name in row}:
                status = TRANSITIONS[status][type_of(event)]
        assert status == self.state.status

    @invariant()
    def usage_stands_right_before_every_idle(self) -> None:
        for index, event in enumerate(self.log):
            if isinstance(event, ev.SessionStatusIdle):
                assert isinstance(self.log[index - 1], ev.SessionUsage)
                assert isinstance(self.log[index - 2], ev.SessionThreadStatusIdle)

    @invariant()
    def no_call_has_two_results_and_none_is_lost(self) -> None:
        uses = [event.id for event in self.log if isinstance(event, ev.AgentToolUse | ev.AgentCustomToolUse)]
        answers = Counter(
            event.tool_use_id if isinstance(event, ev.AgentToolResult) else event.custom_tool_use_id
            for event in self.log
            if isinstance(event, ev.AgentToolResult | ev.UserCustomToolResult)
        )
        assert all(count == 1 for count in answers.values())
        assert set(uses) - set(answers) == {call.id for call in self.state.pending}

    @invariant()
    def every_request_that_ended_started(self) -> None:
        started = [event.id for event in self.log if isinstance(event, ev.SpanModelRequestStart)]
        ended = [event.model_request_start_id for event in self.log if isinstance(event, ev.SpanModelRequestEnd)]
        open_now = [self.state.open_request_id] if self.state.open_request_id else []
        assert sorted(ended + open_now) == sorted(started)

    @invariant()
    def accepted_messages_are_processed_once_or_wait(self) -> None:
        processed = [event.id for event in self.log if isinstance(event, ev.UserMessage)]
        queued = [queued.id for queued in self.state.queue if queued.type == "user.message"]
        assert sorted(processed + queued) == sorted(self.accepted)

    @invariant()
    def a_resting_session_has_nothing_it_could_do(self) -> None:
        if self.state.status == "idle":
            assert self.state.open_request_id is None
            assert not self.state.queue or isinstance(self.state.stop_reason, ev.RequiresAction)
            if isinstance(self.state.stop_reason, ev.EndTurn | ev.RetriesExhausted):
                assert not self.state.pending


SessionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_random_sessions_keep_the_contract = SessionMachine.TestCase


@pytest.mark.parametrize("status", list(TRANSITIONS))
@pytest.mark.parametrize(
    "event",
    [
        ev.SessionStatusRunning(id="sevt_1"),
        ev.SessionStatusIdle(id="sevt_1", stop_reason=ev.EndTurn()),
        ev.SessionStatusRescheduled(id="sevt_1"),
        ev.SessionStatusTerminated(id="sevt_1"),
    ],
    ids=type_of,
)
def test_a_status_event_outside_the_table_raises_and_changes_nothing(status: str, event: ev.AnyEvent) -> None:
    before = SessionState(thread_id="sthr_1", status=status)  # pyright: ignore[reportArgumentType]  # keys of the table
    if type_of(event) in TRANSITIONS[before.status]:
        assert fold(before, event).status == TRANSITIONS[before.status][type_of(event)]
    else:
        with pytest.raises(IllegalTransition) as refused:
            fold(before, event)
        assert refused.value.status == before.status


@pytest.mark.requirement("F021", "F143")
def test_web_requests_that_succeed_are_counted_and_searches_cost() -> None:
    state = make.state()
    for name, failed in (("web_search", False), ("web_search", True), ("web_fetch", False), ("bash", False)):
        use = make.tool_use(name=name)
        state = fold(fold(state, use), msgspec.structs.replace(make.result(use.id), is_error=failed))
    totals = state.totals
    assert (totals.web_search_requests, totals.web_fetch_requests) == (1, 1)
    assert list_cost_microdollars(totals, 0) == 10_000
    shown = snapshot(totals, 3_600_000)
    assert (shown.server_tool_use.web_search_requests, shown.server_tool_use.web_fetch_requests) == (1, 1)
    assert shown.list_cost is not None and shown.list_cost.amount == "9"
    assert totals_of(shown) == totals
