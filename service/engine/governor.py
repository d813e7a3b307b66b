"""How many threads the next step uses, from how long the last ones took. Runs in a worker; pure: time comes in.

llama.cpp's threads wait for each other after every operation, so one core that a neighbour keeps busy slows all of
them, often to less than what fewer threads reach alone. The governor compares the measured pace of thread counts, for
steps of like size, and keeps the best. Knowing how many cores the neighbours leave (neighbours.py) tells it when to
look; without that it probes at intervals. It never goes by the cores alone.

    home ──another count looks better──> trial ──it is──> new home
      ^                                    │
      └──────────────it is not─────────────┘

A count looks better when it was measured so (free to try), or when nobody looked for a while and undisturbed it would
be (a probe; what it loses says how long no other is made). On a quiet machine nothing beats the full count, so nothing
is tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_LOSS_SHARE = 0.025  # of the time may be lost to probes
_RECENT_SECONDS = 0.15  # time constants of the averages
_USUAL_SECONDS = 10.0
_DISTURBED_USUAL_SECONDS = 40.0
_FALL_SECONDS = 0.5
# One step raises the recent pace by at most this share of the usual one, so that a hiccup alone halves no thread count:
# half the threads cost about 1.7 times.
_MOST_RISE = 0.45
_CALM = 1.3  # times the usual pace; above it something disturbs
_CALM_WITH_FREE_CORES = 1.6  # the same when the cores are known to be free: a long context slows steps too
_FEWER_MUST_GAIN = 0.95  # fewer threads must be this much better; more need only be as good
_EXPONENT = 0.8  # untried counts: time goes with threads ** -0.8
_STALE_SECONDS = 1.0  # a look at another size that is this much newer counts more
_FIRST_WAIT_SECONDS = 0.2  # between probes; doubles while they lose
_FIRST_CROWDED_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 15.0
_LONGEST_BLIND_WAIT_SECONDS = 1.0  # when only a probe can tell that the neighbour has gone
_LONGEST_PAUSE_SECONDS = 30.0
# Changes of the free cores after which probing starts afresh: so many at once, and one more after each so many seconds.
_MOST_RESTARTS = 4.0
_RESTART_SECONDS = 3.0
_TRIAL_STEPS = 3
_TRIAL_SECONDS = 0.05
_CROWDED_MUST_GAIN = 0.93  # of more threads, where they are more than the free cores
_CROWDED_TRIAL_STEPS = 8
_CROWDED_TRIAL_SECONDS = 0.2
_CHECK_AFTER_STEPS = 4
_LOOK_SECONDS = 0.02  # between comparisons: they take up to 50 microseconds
# A count fits when all but this much of its last core is free, and until this much is missing.
_SPARE_CORES = 0.3
_MISSING_CORES = 0.5


@dataclass(frozen=True, slots=True)
class Work:
    """What one step computes, in tokens."""

    generated: int  # tokens of running streams, drafts included
    prompt: int  # prompt tokens


@dataclass(slots=True)
class _Pace:
    """Seconds that a step of one size takes with one thread count."""

    usual: float  # undisturbed: falls fast, rises slowly
    recent: float  # without single hiccups
    raw: float  # with them
    seen_at: float  # seconds on the caller's clock
    steps: int = 1
    try_at: float = 0.0


@dataclass(slots=True)
class _Trial:
    """Steps with another count than home."""

    threads: int
    started_at: float
    standard: float  # seconds a step at home
    bar: float  # seconds a step that it must not exceed
    crowded: bool  # more threads than free cores: its steps are uneven, so a lucky few must not decide
    patient: bool  # one slow step may be a hiccup
    steps: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def add(self, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)

    @property
    def mean(self) -> float:
        """Seconds a step; without the slowest when patient."""
        if self.patient and self.steps > 1:
            return (self.seconds - self.slowest) / (self.steps - 1)
        return self.seconds / self.steps

    @property
    def won(self) -> bool | None:
        """None as long as it is open."""
        # The bar is higher at first, for a single step says little; a clear loss ends the trial at once.
        if self.mean > self.bar * (1 + 0.2 / self.steps):
            return None if self.patient and self.steps == 1 else False
        if self.crowded:
            enough = self.steps >= _CROWDED_TRIAL_STEPS and self.seconds >= _CROWDED_TRIAL_SECONDS
        else:
            enough = self.steps >= _TRIAL_STEPS and self.seconds >= _TRIAL_SECONDS
        return self.mean <= self.bar if enough else None


@dataclass(slots=True)
class _Size:
    """Steps of about the same number of tokens: they are compared with each other only."""

    home: int
    paces: dict[int, _Pace] = field(default_factory=dict)
    trial: _Trial | None = None
    came_home_at: float = -math.inf
    look_at: float = -math.inf  # when the counts are compared again


class Governor:
    """Chooses thread counts from measured step times. One per context; every step asks, then tells."""

    def __init__(self, *, max_threads: int) -> None:
        """`max_threads` is the most it gives; it starts with that, or with the free cores when they are known."""
        assert max_threads >= 1
        self._most = max_threads
        self._counts = _counts(max_threads)
        self._sizes: dict[int, _Size] = {}
        self._computed = 0.0  # seconds
        self._checked = False  # fewer threads were measured once
        self._wait = _FIRST_WAIT_SECONDS
        self._probe_at = -math.inf
        self._crowded_wait = _FIRST_CROWDED_WAIT_SECONDS  # the same for more threads than free cores
        self._crowded_probe_at = -math.inf
        self._fitting: int | None = None
        self._changed_at = -math.inf  # the number of free cores
        self._restarts = 0.0

    def threads(self, work: Work, now: float, free_cores: float | None = None) -> int:
        """How many threads to use for this step. `now` is in monotonic seconds.

        `free_cores`: how many cores other processes leave to this one, lately; None when that is not known.
        """
        if self._most == 1:
            return 1
        self._look_around(free_cores, now)
        key = _size_key(work)
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = _Size(home=self._nearest_home(key))
        if size.trial is not None and size.trial.started_at < self._changed_at:
            size.trial = None  # the cores were not counted fully yet
        if size.trial is None and now >= size.look_at:
            size.trial = self._next_trial(key, size, now)
            size.look_at = now + _LOOK_SECONDS
        return size.home if size.trial is None else size.trial.threads

    def observe(self, work: Work, threads: int, seconds: float, now: float) -> None:
        """A step with this many threads took `seconds` and ended at `now`."""
        if self._most == 1:
            return
        key = _size_key(work)
        size = self._sizes.get(key)
        if size is None:
            size = self._sizes[key] = _Size(home=threads)
        self._computed += seconds
        seconds *= _to_middle_of_size(key, work)
        if size.trial is not None and size.trial.threads == threads:
            self._observe_trial(size, size.trial, seconds, now)
        else:
            _update(size.paces, threads, seconds, now)

    def _look_around(self, free_cores: float | None, now: float) -> None:
        if free_cores is None:
            self._fitting = None
            return
        fitting = self._fitting
        if fitting is not None and -_MISSING_CORES <= free_cores - fitting < 1 - _SPARE_CORES:
            return
        self._fitting = max(1, min(self._most, math.floor(free_cores + _SPARE_CORES)))
        if self._fitting == fitting:
            return
        self._restarts = min(_MOST_RESTARTS, self._restarts + (now - self._changed_at) / _RESTART_SECONDS)
        self._changed_at = now
        if self._restarts >= 1:
            # What probes lost before says little now. A neighbour that comes and goes must not make them frequent.
            self._restarts -= 1
            self._wait, self._crowded_wait = _FIRST_WAIT_SECONDS, _FIRST_CROWDED_WAIT_SECONDS
            self._probe_at = -math.inf

    def _crowded(self, threads: int) -> bool:
        return self._fitting is not None and threads > self._fitting

    def _observe_trial(self, size: _Size, trial: _Trial, seconds: float, now: float) -> None:
        trial.add(seconds)
        won = trial.won
        if won is None:
            return
        size.trial, size.look_at = None, now
        mean = trial.mean
        pace = size.paces.get(trial.threads)
        if pace is None:
            pace = size.paces[trial.threads] = _Pace(usual=mean, recent=mean, raw=mean, seen_at=now)
        pace.recent, pace.raw, pace.usual, pace.seen_at = mean, mean, min(pace.usual, mean), now
        pace.steps += trial.steps
        if won:
            stayed = now - size.came_home_at
            if trial.threads < size.home:
                # A home that was good for long is looked at again soon. One that was not was a probe that lost.
                if stayed > _STALE_SECONDS:
                    self._wait = _FIRST_WAIT_SECONDS
                    self._rest(now, 0.0)
                else:
                    self._rest(now, stayed / 2)
            else:
                self._probe_at = now
            size.home, size.came_home_at = trial.threads, now
        else:
            lost = trial.seconds - trial.steps * trial.standard
            if trial.crowded and trial.threads > size.home:
                self._crowded_probe_at = now + max(self._crowded_wait, _pause(lost))
                self._crowded_wait = min(2 * self._crowded_wait, _LONGEST_WAIT_SECONDS)
                pace.try_at = self._crowded_probe_at
            else:
                # Free cores are a reason to try more threads again soon, whatever that cost when they were not.
                pace.try_at = now + self._wait
                self._rest(now, 0.0 if trial.threads > size.home and self._fitting is not None else lost)

    def _rest(self, now: float, lost: float) -> None:
        longest = _LONGEST_BLIND_WAIT_SECONDS if self._fitting is None else _LONGEST_WAIT_SECONDS
        self._probe_at = now + max(self._wait, _pause(lost))
        self._wait = min(2 * self._wait, longest)

    def _next_trial(self, key: int, size: _Size, now: float) -> _Trial | None:
        home = size.paces.get(size.home)
        crowded = self._crowded(size.home)
        if home is None or home.steps < (1 if crowded else _CHECK_AFTER_STEPS):
            return None
        if crowded:
            disturbed = True
            newest = self._newest(size.home)
            if newest is not None and newest.seen_at < self._changed_at:
                return None  # what home takes beside the neighbour must be seen before another count can be better
        else:
            disturbed = home.recent > home.usual * (_CALM if self._fitting is None else _CALM_WITH_FREE_CORES)
        looked = now - home.seen_at < _STALE_SECONDS
        if size.home == self._most and looked and self._checked and not disturbed:
            return None
        standard = self._cost(key, size, size.home)
        best: _Trial | None = None
        best_cost = math.inf
        for count in self._candidates(size):
            more = count > size.home
            bar = standard * (1.0 if more else _FEWER_MUST_GAIN)
            cost = self._cost(key, size, count)
            pace = size.paces.get(count)
            ready = pace is None or now >= pace.try_at
            if not (cost < bar and ready and (more or disturbed or not looked)):
                if not self._worth_a_probe(key, size, count, standard, now):
                    continue
                cost = min(cost, standard)
            if cost < best_cost:
                best_cost = cost
                best = _Trial(
                    threads=count,
                    started_at=now,
                    standard=standard,
                    bar=standard * _CROWDED_MUST_GAIN if more and self._crowded(count) else bar,
                    crowded=self._crowded(count),
                    patient=not self._crowded(count) and (not more or self._fitting is not None),
                )
        if best is not None and best.threads < self._most:
            self._checked = True
        return best

    def _candidates(self, size: _Size) -> list[int]:
        """Counts to compare with home, the one that the free cores suggest first."""
        fitting = self._fitting
        if fitting is None:
            return [count for count in self._counts if count != size.home]
        if size.home > fitting:
            pace = size.paces.get(fitting)
            if pace is None or pace.seen_at < self._changed_at:
                return [fitting]  # what was known of the others, before the cores were taken, misleads
        return sorted({*self._counts, fitting} - {size.home}, key=lambda count: abs(count - fitting))

    def _worth_a_probe(self, key: int, size: _Size, count: int, standard: float, now: float) -> bool:
        usual = self._usual(key, size, count)
        if count > size.home:
            pace = size.paces.get(count)
            if now < (self._crowded_probe_at if self._crowded(count) else self._probe_at):
                return False
            knows_more = self._fitting is not None and not self._crowded(count)
            if pace is not None and not knows_more and now - pace.seen_at < _pause(pace.recent - standard):
                return False  # it will cost what it cost last
            return min(usual, _scaled(standard, size.home, count)) < standard
        if now < self._probe_at:
            return False
        price = usual - standard
        if self._crowded(size.home):
            return count == self._fitting
        # A worker may start beside a neighbour: then its usual pace is the disturbed one, and only fewer threads tell.
        # Known free cores leave only what the counters do not show, such as a quota: there is time for that.
        share = _LOSS_SHARE / (2 if self._fitting is None else 8)
        return not self._checked and count == max(1, self._most // 2) and price < share * self._computed

    def _cost(self, key: int, size: _Size, count: int) -> float:
        """Seconds a step would take now with `count` threads, by the latest look at that count at any size."""
        usual = self._usual(key, size, count)
        own = size.paces.get(count)
        newest = self._newest(count)
        if newest is None:
            return usual
        if own is not None and (newest.seen_at < own.seen_at + _STALE_SECONDS and not self._outdated(own, newest)):
            return own.raw if self._crowded(count) else own.recent
        # Waiting at barriers adds time per operation, so large steps lose no larger share than small ones.
        pace = newest.raw if self._crowded(count) else newest.recent
        return usual + (pace / newest.usual - 1) * min(usual, newest.usual)

    def _newest(self, count: int) -> _Pace | None:
        """The latest look at a count, at any size."""
        paces = [size.paces[count] for size in self._sizes.values() if count in size.paces]
        return max(paces, key=lambda pace: pace.seen_at, default=None)

    def _outdated(self, pace: _Pace, newest: _Pace) -> bool:
        return pace.seen_at < self._changed_at <= newest.seen_at

    def _usual(self, key: int, size: _Size, count: int) -> float:
        """Undisturbed seconds of a step; for an untried count, by the ratio at the nearest size that knows both."""
        own = size.paces.get(count)
        if own is not None:
            return own.usual
        known, pace = min(size.paces.items(), key=lambda item: abs(item[0] - count))
        for _, other in sorted(self._sizes.items(), key=lambda item: abs(item[0] - key)):
            if count in other.paces and known in other.paces:
                return pace.usual * other.paces[count].usual / other.paces[known].usual
        return _scaled(pace.usual, known, count)

    def _nearest_home(self, key: int) -> int:
        if not self._sizes:
            return self._fitting or self._most
        return self._sizes[min(self._sizes, key=lambda other: abs(other - key))].home


def _counts(most: int) -> list[int]:
    """Thread counts worth trying: close together near the top, where one or two busy cores are left out."""
    return sorted({count for count in (1, most // 4, most // 2, most * 3 // 4, most - 2, most - 1, most) if count >= 1})


def _scaled(seconds: float, threads: int, count: int) -> float:
    """What `count` undisturbed threads would take for what takes `seconds` with `threads`."""
    return seconds * math.pow(threads / count, _EXPONENT)


def _pause(lost: float) -> float:
    """Seconds without probes that make up for one that lost so many."""
    return min(lost / _LOSS_SHARE, _LONGEST_PAUSE_SECONDS)


def _size_key(work: Work) -> int:
    # Half powers of two: 1, 1.4, 2, 2.8, 4, ... tokens.
    return round(2 * math.log2(max(1, work.generated + work.prompt)))


def _to_middle_of_size(key: int, work: Work) -> float:
    # Between proportional to tokens (large steps) and independent of them (small ones).
    return math.pow(2 ** (key / 2) / max(1, work.generated + work.prompt), 0.7)


def _update(paces: dict[int, _Pace], threads: int, seconds: float, now: float) -> None:
    pace = paces.get(threads)
    if pace is None:
        paces[threads] = _Pace(usual=seconds, recent=seconds, raw=seconds, seen_at=now)
        return
    pace.steps += 1
    weight = max(min(1 - math.exp(-pace.usual / _RECENT_SECONDS), 0.5), 1 / pace.steps)
    pace.recent += min(weight * (seconds - pace.recent), _MOST_RISE * pace.usual)
    # Read only beside a known neighbour: by the time that steps take there, not by how many there were.
    pace.raw += max(min(1 - math.exp(-seconds / _RECENT_SECONDS), 0.25), 1 / pace.steps) * (seconds - pace.raw)
    if pace.recent < pace.usual:
        constant = _FALL_SECONDS
    elif pace.recent < _CALM * pace.usual:
        constant = _USUAL_SECONDS
    else:
        constant = _DISTURBED_USUAL_SECONDS
    pace.usual += (1 - math.exp(-seconds / constant)) * (pace.recent - pace.usual)
    pace.seen_at = now
