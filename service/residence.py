"""Residence: which sessions of one model have slots, which have cells, and who makes room for whom.

Owns slots and cells of sessions, and the choice of who leaves: the least recently used of those that are idle. Must not
know chunks, threads or the wire. Decides only; what must be copied it returns as `pages.PageMoves`, which travel with a
tick.

A session that is open is in one **tier**, and the table says which: it has a slot; or a cell; or `is_stored`; or none
of these, and then its states are the initial ones (or, of a beam, in the slot of another). Only the methods here move
it between them. What stands at its start has no cell, and is never stored.

Ordering rules: all on the event loop. The table says at once where a session's states will be when the tick is run;
ticks are run and committed in the order in which they were formed. So a slot or a cell may have a new owner as soon as
moves are formed, but a cell that a tick or a job under way may still touch is written by nobody else until that has
been committed: the event loop writes cells, too.

Dimension key: B rows of a call, S slots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eddy.service.arena import INITIAL_SLOT, NUM_RESERVED_SLOTS, SlotAllocator
from eddy.service.backing import whose_cells
from eddy.service.cells import Cells, HostMemory
from eddy.service.errors import CapacityError, Detail, Reason
from eddy.service.lifecycle import Tier
from eddy.service.pages import Arena, PageMoves, Stage
from eddy.service.ports import State
from eddy.service.sessions import NOWHERE, SessionTable

# Those who may leave are put in order so many at a time, and asked one after the other whether they still may: a
# session that comes back alone then costs no search. At least so many, or a share of the arena.
_FEWEST_CANDIDATES = 256
_SHARE_OF_CANDIDATES = 8


@dataclass(frozen=True, slots=True)
class Places:
    """Where the states of sessions are, when the job that reads them is run.

    Attributes:
        read_slots, home_slots: int64 [B]; cells: int64 [B], `NOWHERE` for those in slots.
        away: whose states were in no slot of their own then, places in the above, int64 [n]: a tick under way may be
            about to write them into it. num_undone: page moves that had failed by then.
    """

    read_slots: np.ndarray
    home_slots: np.ndarray
    cells: np.ndarray
    away: np.ndarray
    num_undone: int


class Residence:
    """The places of one model's sessions.

    Args:
        model: its index in the table.
        table: sessions; arena: what holds the slots' states; states: the model's.
        num_slots: S; most_rows: rows of one tick; memory: what cells may have.
        on_moved: told of page moves that were carried out.
        is_endless: sessions may be open that neither slots nor cells have room for: a state store takes them.
    """

    def __init__(
        self,
        model: int,
        table: SessionTable,
        arena: Arena,
        states: Sequence[State],
        num_slots: int,
        most_rows: int,
        memory: HostMemory,
        on_moved: Callable[[PageMoves], None] = lambda _: None,
        *,
        is_endless: bool = False,
    ) -> None:
        self._model = model
        self._table = table
        self._arena = arena
        self._states = states
        self._is_endless = is_endless
        self._on_moved = on_moved
        # While a session comes, the cell of the one that leaves is taken before its own is free.
        self._num_spare = min(most_rows, num_slots)
        self.slots = SlotAllocator(NUM_RESERVED_SLOTS, num_slots)
        self.cells = Cells(states, memory)
        # Changed only by the methods below.
        # Whose a slot is: its row, or 0.
        self._owners = np.zeros(num_slots, np.int64)
        # Slots that are neither free nor anybody's: of sessions that are not there yet, or that have ended.
        self._num_withheld = 0
        self.num_sessions = 0
        # Of these, those that are not there yet: a place was taken for them.
        self.num_expected = 0
        # Some session has no slot; and how many have none.
        self.is_parked = False
        self.num_parked = 0
        # Sessions whose states are in the state store only; whether there ever were any.
        self.num_stored = 0
        self.has_shelved = False
        self._makes_way = False
        # Who leaves next: rows in slots, the least recently used first, with what that was seen by.
        self._candidates = np.zeros(0, np.int64)
        self._seen = np.zeros(0, np.float64)
        # Moves and reading jobs that were formed and committed, and cells that wait for one of them.
        self._num_formed = 0
        self._num_finished = 0
        self._leaving: deque[tuple[int, np.ndarray]] = deque()
        self._num_undone = 0

    # Opening and ending

    def take(self, count: int) -> np.ndarray:
        """Slots for `count` new sessions, int64 [count]: their own, or `NOWHERE` for all of them.

        Raises:
            CapacityError: TOO_MANY_SESSIONS: neither slots nor memory for them; nothing was taken.
        """
        after = self.num_sessions + count
        wanted = self._cells_for(after)
        reserved = self.cells.reserve(max(wanted, self.cells.num_used))
        # Where the state store takes the rest: room for a tick of those who come from there, and of those who leave.
        if reserved < wanted and not (self._is_endless and reserved >= 2 * self._num_spare):
            self._fit()
            most = self.slots.num_slots + max(0, self._most_cells() - self._num_spare)
            raise CapacityError(
                Reason.TOO_MANY_SESSIONS,
                f"{count} sessions asked for, {self.num_sessions} of this model are open, and "
                f"{self.slots.num_slots} state slots with the host's memory (state.host_bytes) have room for {most}",
                Detail("count", str(count), f"at most {max(0, most - self.num_sessions)}"),
            )
        slots = np.full(count, NOWHERE, np.int64)
        if self.slots.num_free >= count:
            slots = self.slots.allocate(count)
            self._num_withheld += count
        self.num_sessions = after
        self.num_expected += count
        return slots

    def take_cells(self, count: int) -> np.ndarray:
        """Cells for `count` sessions that come with states and get no slots, int32 [count]; at most `num_more`."""
        assert count <= self.num_more, "more cells than there is room for"
        self.num_sessions += count
        self.num_expected += count
        self.cells.reserve(max(self._cells_for(self.num_sessions), self.cells.num_used + count + self._num_spare))
        return self.cells.allocate(count)

    @property
    def num_more(self) -> int:
        """Cells that sessions which come with states may have now, beside those that ticks need."""
        num_spare, most = self._num_spare, self._most_cells()
        if self._is_endless:
            return max(0, most - self.cells.num_used - 2 * num_spare)
        left = self.slots.num_slots - self.num_sessions  # Those need no cells.
        return max(0, most - num_spare + min(left, -self.cells.num_used))

    def can_replace(self, other: Residence) -> bool:
        """Whether all sessions of `other`, as they leave it, could come here."""
        most = self._most_cells() + other.cells.num_reserved * other.cells.cell_bytes // self.cells.cell_bytes
        return self._is_endless or self._cells_for(self.num_sessions + other.num_sessions) <= most

    def make_way(self, num_cells: int, *, is_on: bool) -> None:
        """Its sessions go to another model, which needs memory: what a store has gives up `num_cells` cells or more.

        Until `is_on` is False no more memory is promised to them than they use, and ticks need.
        """
        self._makes_way = is_on and self._is_endless
        if self._makes_way:
            self.shelve(num_cells, np.empty(0, np.int64))
        self._fit()

    def give_back(self, slots: np.ndarray) -> None:
        """Nothing was opened for what `take` returned."""
        held = slots[slots != NOWHERE]
        self.num_sessions -= len(slots)
        self.num_expected -= len(slots)
        self.free_slots(held)
        self._fit()

    def settle_in(self, rows: np.ndarray, slots: np.ndarray) -> None:
        """The sessions in `rows` were opened for what `take` returned."""
        self.num_expected -= len(slots)
        if slots[0] == NOWHERE:
            self._count_parked(len(slots))
        else:
            self._num_withheld -= len(slots)
            self._owners[slots - NUM_RESERVED_SLOTS] = rows

    def leave(self, rows: np.ndarray, *, keeps_slots: bool = False) -> None:
        """The sessions in `rows` int64 [B], not busy, end: their slots and cells are free.

        Args:
            keeps_slots: the slots stay taken, until `free_slots`.
        """
        self._vacate(rows, keeps_slots=keeps_slots)
        self.num_sessions -= len(rows)
        self._fit()

    def free_slots(self, slots: np.ndarray) -> None:
        """Those of sessions that have left, and kept them until now."""
        self._num_withheld -= len(slots)
        self.slots.free(slots)

    def forget(self, rows: np.ndarray) -> None:
        """The states of the sessions in `rows` int64 [B] are of no account any more; slots are kept.

        Of sessions that are busy others are being written, which stay.
        """
        if self.is_parked:
            rows = rows[~self._table.is_busy[rows]]
            self._unshelve(rows)
            self._leave_cells(rows)

    def _vacate(self, rows: np.ndarray, *, keeps_slots: bool = False) -> None:
        """Takes slots and cells from sessions; their count as parked goes, too."""
        slots = self._table.slot[rows]
        held = slots[slots != NOWHERE].astype(np.int64)
        self._owners[held - NUM_RESERVED_SLOTS] = 0
        if keeps_slots:
            self._num_withheld += len(held)
        else:
            self.slots.free(held)
        if len(held) < len(rows):
            self._count_parked(len(held) - len(rows))
            self._unshelve(rows)
            self._leave_cells(rows)

    def _leave_cells(self, rows: np.ndarray) -> None:
        cells = self._table.cell[rows]
        held = cells[cells != NOWHERE]
        if not len(held):
            return
        self._table.cell[rows] = NOWHERE
        if self._num_formed == self._num_finished:
            self.cells.free(held)
        else:
            self._leaving.append((self._num_formed, held))

    def _count_parked(self, more: int) -> None:
        self.num_parked += more
        assert self.num_parked >= 0, "more sessions were given slots than were without"
        self.is_parked = self.num_parked > 0

    def _cells_for(self, num_sessions: int) -> int:
        """Cells that must be there for so many sessions."""
        beyond = num_sessions - self.slots.num_slots
        return beyond + self._num_spare if beyond > 0 else 0

    def _most_cells(self) -> int:
        return self.cells.num_reserved + self.cells.num_more

    def _fit(self) -> None:
        """Memory that is promised is what the open sessions need."""
        wanted = self._cells_for(self.num_sessions)
        if self._makes_way:
            wanted = min(wanted, self.cells.num_used + 2 * self._num_spare)
        self.cells.reserve(max(wanted, self.cells.num_used))

    @property
    def by_tier(self) -> dict[Tier, int]:
        """Open sessions by where their states are. Any thread may ask; cells that are being left count, too."""
        num_parked = self.num_parked
        num_cells = min(self.cells.num_used, num_parked)
        return {
            Tier.DEVICE: self.num_sessions - num_parked,
            Tier.HOST: num_cells,
            Tier.STORE: self.num_stored,
            Tier.INITIAL: max(0, num_parked - num_cells - self.num_stored),
        }

    def refusal(self, num_rows: int) -> CapacityError:
        """The error for a chunk of `num_rows` sessions that can never have slots together."""
        return CapacityError(
            Reason.TOO_MANY_ROWS,
            f"handles: {num_rows} sessions must have a state slot each to be stepped together, the model has "
            f"{self.slots.num_slots} and too few of them can be made free; send fewer sessions at once",
            Detail("handles", f"{num_rows} sessions", f"at most {self.slots.num_slots} that are not held by beams"),
        )

    # The store tier

    def stored_of(self, rows: np.ndarray) -> np.ndarray:
        """Those of the sessions in `rows` int64 [B] whose states are in the state store only."""
        return np.asarray(rows[self._table.is_stored[rows]])

    def hold(self, rows: np.ndarray) -> None:
        """Somebody is about to read the states of the sessions in `rows` int64 [B], distinct: they keep their cells.

        They may change places otherwise. `release` is called once for it, whatever has become of them.
        """
        self._table.num_readers[rows] += 1

    def release(self, rows: np.ndarray) -> None:
        """The states of those that were held were read, or nobody will."""
        self._table.num_readers[rows] -= 1
        assert (self._table.num_readers[rows] >= 0).all(), "sessions were released that nobody had held"

    def shelve(self, count: int, staying: np.ndarray, *, is_enough_only: bool = False) -> None:
        """Takes `count` cells or more from sessions that the state store has as they are, as far as there are any.

        None from those in `staying` int64 [B].

        Args:
            is_enough_only: none at all where there are fewer.
        """
        rows = whose_cells(self._table, self._model, count, staying)
        if len(rows) >= (count if is_enough_only else 1):
            self._leave_cells(rows)
            self._table.is_stored[rows] = True
            self.num_stored += len(rows)
            self.has_shelved = True

    def _unshelve(self, rows: np.ndarray) -> None:
        """The states of the sessions in `rows` are elsewhere than in the store from now on, or of no account."""
        if self.has_shelved:
            self.num_stored -= int(np.count_nonzero(self._table.is_stored[rows]))
            self._table.is_stored[rows] = False

    def place_at_start(self, rows: np.ndarray) -> None:
        """The sessions in `rows` int64 [B], open and idle, have the initial states: they need no place for them."""
        self._unshelve(rows)
        self._leave_cells(rows)
        self._table.stand_at_start(rows, INITIAL_SLOT)

    # Making room

    def has_room(self, num_rows: int, num_busy: int, num_pinned: int) -> bool:
        """Whether `num_rows` sessions can all be given slots for one tick, whoever they are. Plain integers."""
        num_held = num_busy + num_pinned + self._num_withheld
        return num_rows + num_held <= self.slots.num_slots and num_rows <= self.cells.num_free

    def missing(self, rows: np.ndarray) -> int:
        """Slots, or cells for those who leave theirs, that are short for a tick of the sessions in `rows` int64 [B]."""
        table = self._table
        rows = np.unique(rows)
        needed = int(np.count_nonzero(table.slot[rows] == NOWHERE)) - self.slots.num_free
        if needed <= 0:
            return 0
        residents = self._owners[self._owners > 0]
        can_leave = ~(table.is_busy[residents] | table.is_pinned[residents])
        can_leave &= ~np.isin(residents, rows, assume_unique=True)
        victims = residents[can_leave]
        if needed > len(victims):
            return needed - len(victims)
        # Who stands before the first step needs no cell.
        needed_cells = needed - int(np.count_nonzero(self._is_blank(victims)))
        if self._is_endless and (short := self.cells.num_short(needed_cells)) and needed_cells > 0:
            # To some avail: those for whom it is not enough would push out for ever who has just come back.
            self.shelve(short, rows, is_enough_only=True)
        return max(0, needed_cells - self.cells.num_free)

    def bring(self, rows: np.ndarray) -> PageMoves | None:
        """Gives slots to the sessions in `rows` int64 [B] that have none; there must be room.

        Returns:
            What must be copied before they are stepped, if anything.
        """
        table = self._table
        lacking = rows[table.slot[rows] == NOWHERE]
        has_cell = table.cell[lacking] != NOWHERE
        # Before anything is changed: what is read at no place is another session's.
        assert (has_cell | (table.read_slot[lacking] != NOWHERE)).all(), "a session without states is to be stepped"
        free = min(len(lacking), self.slots.num_free)
        victims = self._victims(len(lacking) - free, rows)
        slots = self.slots.allocate(free)
        # 1. Who leaves.
        left = table.slot[victims].astype(np.int64)
        slots = np.concatenate([slots, left])
        is_blank = self._is_blank(victims)
        out = victims[~is_blank]
        out_read, out_home = table.read_slot[out].astype(np.int64), table.home_slot[out].astype(np.int64)
        out_cells = self.cells.allocate(len(out))
        table.slot[victims] = NOWHERE
        table.cell[out] = out_cells
        table.read_slot[out] = NOWHERE
        # 2. Who comes.
        table.slot[lacking] = slots
        self._owners[slots - NUM_RESERVED_SLOTS] = lacking
        coming, in_slots = lacking[has_cell], slots[has_cell]
        in_cells = table.cell[coming]
        table.cell[coming] = NOWHERE
        table.read_slot[coming] = in_slots
        table.home_slot[coming] = in_slots
        self._count_parked(len(victims) - len(lacking))
        if not len(out) and not len(coming):
            return None
        self._num_formed += 1
        return PageMoves(
            out,
            left[~is_blank],
            out_read,
            out_home,
            out_cells,
            coming,
            in_cells,
            in_slots,
            lacking[~has_cell],
            slots[~has_cell],
            self._arena,
            self.cells,
        )

    def _is_blank(self, rows: np.ndarray) -> np.ndarray:
        """Which sessions stand before their first step, with the initial states: there is nothing to copy."""
        return np.asarray(self._table.read_slot[rows] == INITIAL_SLOT)

    def _victims(self, count: int, rows: np.ndarray) -> np.ndarray:
        """The `count` least recently used of those who may leave their slots, none of `rows`, int64 [count]."""
        table = self._table
        found: list[np.ndarray] = [np.zeros(0, np.int64)]
        # Nobody is asked twice: who steps now, and who was found before more had to be looked for.
        kept = table.is_busy[rows]
        table.is_busy[rows] = True
        try:
            while count > 0:
                if not len(self._candidates):
                    self._find_candidates(count)
                taken = self._candidates[:count]
                slots = table.slot[taken]
                is_good = (table.last_used[taken] == self._seen[:count]) & (slots != NOWHERE)
                # A row may have another session by now, of another model.
                is_good &= self._owners[np.maximum(slots - NUM_RESERVED_SLOTS, 0)] == taken
                is_good &= ~(table.is_busy[taken] | table.is_pinned[taken])
                self._candidates, self._seen = self._candidates[count:], self._seen[count:]
                found.append(taken[is_good])
                table.is_busy[found[-1]] = True
                count -= len(found[-1])
        finally:
            table.is_busy[np.concatenate(found)] = False
            table.is_busy[rows] = kept
        return np.concatenate(found)

    def _find_candidates(self, count: int) -> None:
        table = self._table
        residents = self._owners[self._owners > 0]
        residents = residents[~(table.is_busy[residents] | table.is_pinned[residents])]
        assert len(residents) >= count, "room was counted on that is not there"
        used = table.last_used[residents]
        most = max(count, _FEWEST_CANDIDATES, self.slots.num_slots // _SHARE_OF_CANDIDATES)
        if most < len(residents):
            first = np.argpartition(used, most)[:most]
            residents, used = residents[first], used[first]
        order = np.argsort(used, kind="stable")
        self._candidates, self._seen = residents[order], used[order]

    # What became of it

    def settle(self, moves: PageMoves) -> None:
        """The moves were carried out: cells that were left are free."""
        if moves.is_settled:
            return
        moves.is_settled = True
        self._on_moved(moves)
        self.cells.free(moves.in_cells)
        self.finish()
        self._fit()

    def undo(self, moves: PageMoves) -> np.ndarray:
        """The moves failed on the way: everybody is where its states are.

        Returns:
            Sessions whose states are lost, int64 [n].
        """
        table = self._table
        moves.is_settled = True
        self._num_undone += 1
        # 1. Who came has no slot, and is in its cell.
        coming = np.concatenate([moves.in_rows, moves.fresh_rows])
        slots = np.concatenate([moves.in_slots, moves.fresh_slots])
        table.slot[coming] = NOWHERE
        table.cell[moves.in_rows] = moves.in_cells
        table.read_slot[moves.in_rows] = NOWHERE
        self._owners[slots - NUM_RESERVED_SLOTS] = 0
        self._count_parked(len(coming))
        lost = moves.in_rows[np.isin(moves.in_cells, list(self.cells.broken))]
        # 2. Who did not get out is still in its slot, unless a tick behind has sent for it: that one finds it lost.
        if moves.stage is Stage.FORMED:
            is_there = (table.cell[moves.out_rows] == moves.out_cells) & (table.slot[moves.out_rows] == NOWHERE)
            back = moves.out_rows[is_there]
            table.slot[back] = moves.out_slots[is_there]
            table.read_slot[back] = moves.out_read[is_there]
            table.home_slot[back] = moves.out_home[is_there]
            self._owners[moves.out_slots[is_there] - NUM_RESERVED_SLOTS] = back
            self._leave_cells(back)
            self._count_parked(-len(back))
            slots = np.setdiff1d(slots, moves.out_slots[is_there])
        self.slots.free(slots)
        self.finish()
        return lost

    def finish(self) -> None:
        """The oldest moves or reading job under way is through."""
        self._num_finished += 1
        while self._leaving and self._leaving[0][0] <= self._num_finished:
            self.cells.free(self._leaving.popleft()[1])

    # Reading and placing

    def locate(self, rows: np.ndarray) -> Places:
        """Where the states of the sessions in `rows` int64 [B] are for a job that runs now; `finish` is told later."""
        table = self._table
        assert not len(self.stored_of(rows)), "states that are in the store only are recalled first"
        self._num_formed += 1
        cells = table.cell[rows].astype(np.int64)
        is_cell = cells != NOWHERE
        read = np.where(is_cell, INITIAL_SLOT, table.read_slot[rows]).astype(np.int64)
        home = np.where(is_cell, INITIAL_SLOT, table.home_slot[rows]).astype(np.int64)
        assert (read != NOWHERE).all(), "states are in no place that could be read"
        away = np.flatnonzero(~is_cell & (read != table.slot[rows]))
        return Places(read, home, cells, away, self._num_undone)

    def are_good(self, rows: np.ndarray, places: Places) -> bool:
        """Whether the states of `rows` were there when a job read them that has just been run.

        Not where page moves before it have failed, which leave states where they were, nor where a step before it has
        taken a session from its start.
        """
        is_same = self._table.read_slot[rows[places.away]] == places.read_slots[places.away]
        return places.num_undone == self._num_undone and bool(is_same.all())

    def read(self, places: Places) -> list[np.ndarray]:
        """Copies of the states there, one [B, ...] a state, on the thread that runs the job; see `are_good`."""
        found = self._arena.read_states(places.read_slots, places.home_slots)
        is_cell = places.cells != NOWHERE
        if is_cell.any():
            for values, parked in zip(found, self.cells.read(places.cells[is_cell]), strict=True):
                values[is_cell] = parked
        return found

    def write(self, slots: np.ndarray, cells: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """Overwrites the states in `slots` int64 [B], or where that is `NOWHERE` in `cells`, on whichever thread."""
        has_slot = slots != NOWHERE
        if has_slot.all():
            self._arena.write_states(slots, states)
            return
        self.cells.write(cells[~has_slot], [values[~has_slot] for values in states])
        if has_slot.any():
            self._arena.write_states(slots[has_slot], [values[has_slot] for values in states])

    def place(self, rows: np.ndarray, states: Sequence[np.ndarray]) -> None:
        """The sessions in `rows` int64 [B], open and idle, have `states`, [B, ...] each, from now on, in cells.

        A slot that one of them has is free; a cell is taken for it also where that is more than is reserved. Where
        `states` are not what the model has, nothing has changed.
        """
        cells = self.cells.allocate(len(rows))
        try:
            self.cells.write(cells, states)
        except BaseException:
            self.cells.free(cells)
            raise
        self._enter(rows, cells)

    def settle_back(self, rows: np.ndarray) -> PageMoves | None:
        """Slots for those of the sessions in `rows` int64 [B] that wait in cells, are idle, and find a free one."""
        table = self._table
        waiting = rows[(table.slot[rows] == NOWHERE) & (table.cell[rows] != NOWHERE) & ~table.is_busy[rows]]
        return self.bring(waiting[: self.slots.num_free]) if len(waiting) and self.slots.num_free else None

    def enter_cells(self, rows: np.ndarray) -> np.ndarray:
        """New cells for the sessions in `rows` int64 [B], which leave all that they have, int32 [B].

        Nothing is in them: they are busy until a job has written what they have from now on, or they end. Where that is
        more than is reserved, others make room, as far as the state store has them.
        """
        if self._is_endless and (short := self.cells.num_short(len(rows))):
            self.shelve(short, rows)
        cells = self.cells.allocate(len(rows))
        self._enter(rows, cells)
        return cells

    def _enter(self, rows: np.ndarray, cells: np.ndarray) -> None:
        table = self._table
        self._vacate(rows)
        table.slot[rows] = NOWHERE
        table.cell[rows] = cells
        table.read_slot[rows] = NOWHERE
        self._count_parked(len(rows))
