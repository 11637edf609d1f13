"""One thread drives the context: tasks say what they want evaluated next, and share its batches."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable

from localgemma.errors import BackendError, DecodeError
from localgemma.llamacpp.batch import Span
from localgemma.llamacpp.cache import Cache
from localgemma.llamacpp.context import ABORTED, NO_ROOM
from localgemma.llamacpp.task import END, Grant, Lost, Rows, Stopped, Task

_STALL = 0.25  # seconds that a prompt may hold up the answers of others
_FIRST_SLICE = 128  # tokens of a prompt beside answers while its speed is unknown


class Scheduler:
    """Runs tasks and jobs on the thread that calls `run`; `submit` and `call` may be used from any thread."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self._context = cache, cache.context
        self._inbox: queue.SimpleQueue[Task | Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Task] = deque()
        self._active: list[Task] = []
        self._speed = 0.0
        self._turn = 0
        self._open = True

    def submit(self, task: Task) -> None:
        """Queue a task."""
        task.cancel.watch(lambda: self._context.interrupt(True))
        self._inbox.put(task)

    def call(self, job: Callable[[], None]) -> None:
        """Queue a job that has the context to itself between two batches."""
        self._inbox.put(job)

    def stop(self) -> None:
        """End `run`; tasks that are under way or queued end as cancelled."""
        self._inbox.put(None)

    def run(self) -> None:
        """The driver's loop."""
        while self._open or self._active or self._waiting:
            self._receive()
            self._admit()
            if self._active:
                self._step()

    def _receive(self) -> None:
        idle = not self._active and not self._waiting
        while self._open and (idle or not self._inbox.empty()):
            item = self._inbox.get()
            idle = False
            if item is None:
                self._open = False
            elif isinstance(item, Task):
                self._waiting.append(item)
            else:
                item()

    def _admit(self) -> None:
        """Start waiting tasks, in order, while there is a sequence and room for their prompts."""
        for task in list(self._waiting):
            if task.cancel.cancelled or not self._open:
                self._waiting.remove(task)
                self._begin(task)
        while self._waiting:
            task = self._waiting[0]
            if self._active and self._taken() + task.size > self._context.size:
                return
            task.slot = self.cache.acquire(task.keys, task.conversation)
            if task.slot is None:
                return
            self._waiting.popleft()
            self._begin(task)

    def _begin(self, task: Task) -> None:
        self._active.append(task)
        try:
            task.steps = task.begin(task.slot)
            task.work = next(task.steps)
        except StopIteration:
            self._end(task)
        except BaseException as error:
            self._fail(task, error)

    def _taken(self) -> int:
        return sum(task.size for task in self._active if not task.parked)

    def _step(self) -> None:
        """One batch of tokens, and one picture if any waits."""
        for task in self._active[:]:
            if task.cancel.cancelled or not self._open:
                self._throw(task, Stopped())
        self._unpark()
        if len(self._active) == 1 and self._active[0].whole and self._active[0].ready:
            task = self._active[0]
            assert isinstance(task.work, Span)
            self.cache.room(len(task.work.tokens))
            self._evaluate([(task, task.work)])
            return
        chosen = self._packed()
        while chosen and not self._fits(sum(len(span.tokens) for _, span in chosen)):
            chosen = self._packed()
        if chosen:
            self._evaluate(chosen)
        picture = next((task for task in self._active if isinstance(task.work, Rows) and task.ready), None)
        if picture is not None and not picture.cancel.cancelled:
            self._show(picture)
        elif not chosen and self._active:
            time.sleep(0.001)  # every reader is behind

    def _packed(self) -> list[tuple[Task, Span]]:
        """Whole spans first, then equal slices of the others, which take turns at being first."""
        budget, outputs = self._context.ubatch, self._context.outputs
        chosen: list[tuple[Task, Span]] = []
        tasks = [task for task in self._active if isinstance(task.work, Span) and task.ready]
        self._turn += 1
        if tasks:
            at = self._turn % len(tasks)
            tasks = tasks[at:] + tasks[:at]
        for task in tasks:
            work = task.work
            if task.whole and isinstance(work, Span) and len(work.tokens) <= budget and work.outputs <= outputs:
                chosen.append((task, work))
                budget, outputs = budget - len(work.tokens), outputs - work.outputs
        long = [task for task in tasks if not task.whole]
        if chosen:
            budget = min(budget, max(int(self._speed * _STALL), _FIRST_SLICE))
        for index, task in enumerate(long):
            work = task.work
            assert isinstance(work, Span)
            count = min(len(work.tokens), max(budget // (len(long) - index), min(budget, 32)))
            ends = count == len(work.tokens)
            if count and (not ends or work.outputs <= outputs):
                span = work if ends else Span(work.sequence, work.tokens[:count], work.position)
                chosen.append((task, span))
                budget, outputs = budget - count, outputs - span.outputs
        return chosen

    def _fits(self, count: int) -> bool:
        """Make room for `count` tokens; False where a task was put off for it (the youngest goes first)."""
        if self.cache.room(count) or len(self._active) == 1:
            return True
        running = [task for task in self._active if not task.parked]
        if len(running) == 1:
            return True
        self._park(running[-1])
        return False

    def _park(self, task: Task) -> None:
        assert task.slot is not None
        self.cache.clear(task.slot)
        task.parked = True
        self._throw(task, Lost())

    def _unpark(self) -> None:
        for task in self._active:
            if task.parked and (not self._taken() or self._taken() + task.size + _FIRST_SLICE <= self._context.size):
                task.parked = False

    def _evaluate(self, chosen: list[tuple[Task, Span]]) -> None:
        started = time.perf_counter()
        first = chosen[0][1]
        try:
            if len(chosen) == 1 and len(first.tokens) == 1:
                status = self._context.decode_one(first.tokens[0], first.position, first.sequence)
            else:
                status = self._context.decode_spans([span for _, span in chosen])
        except DecodeError as error:
            self._refused([task for task, _ in chosen], error)
            return
        if status == ABORTED:
            self._aborted([task for task, _ in chosen])
            return
        row = 0
        for task, span in chosen:
            count = len(span.tokens)
            self._send(task, (count, row))
            row += count
        if row > 32 * len(chosen):
            self._speed = row / (time.perf_counter() - started)

    def _show(self, task: Task) -> None:
        work = task.work
        assert isinstance(work, Rows)
        count = len(work.rows)
        while not self._fits(count):
            if task.parked:
                return
        try:
            status = self._context.decode_picture(work.rows, work.position, work.sequence)
        except DecodeError as error:
            self._refused([task], error)
            return
        if status == ABORTED:
            self._aborted([task])
        else:
            self._send(task, (count, 0))

    def _aborted(self, tasks: list[Task]) -> None:
        """Nothing of the batch counts; whoever was cancelled is told at the next step, the others try again."""
        self._context.interrupt(False)
        for task in tasks:
            slot = task.slot
            if slot is not None and self._context.end(slot.id) > len(slot.held):
                self._context.cut(len(slot.held), slot.id)

    def _refused(self, tasks: list[Task], error: DecodeError) -> None:
        if error.status == NO_ROOM and len(tasks) > 1:
            self._park(tasks[-1])
            return
        for task in tasks:
            self._fail(task, error)

    def _send(self, task: Task, grant: Grant) -> None:
        assert task.steps is not None
        try:
            task.work = task.steps.send(grant)
        except StopIteration:
            self._end(task)
        except BaseException as error:
            self._fail(task, error)

    def _throw(self, task: Task, signal: Exception) -> None:
        assert task.steps is not None
        try:
            task.work = task.steps.throw(signal)
        except StopIteration:
            self._end(task)
        except BaseException as error:
            self._fail(task, error)

    def _fail(self, task: Task, error: BaseException) -> None:
        if task.slot is not None:
            self.cache.clear(task.slot)
        if isinstance(error, Stopped | Lost):
            error = BackendError("A task was stopped where it could not be.")
        task.outputs.put(error)
        self._end(task)

    def _end(self, task: Task) -> None:
        task.cancel.watch(None)
        self._active.remove(task)
        if task.slot is not None:
            self.cache.release(task.slot)
        task.outputs.put(END)
