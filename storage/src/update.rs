//! Changing a key: the rule, the log, the memtable.

use bytes::Bytes;
use dunlin_protocol::register::{Change, Held, Register};
use dunlin_protocol::{KeyspaceId, Millis, Record, RecordHead};

use crate::disk::Wait;
use crate::engine::{Engine, Entry, KeyRef, Updated, count};
use crate::error::{ReadError, WriteError};
use crate::frame::{self, Encoded};
use crate::full_key::FullKey;
use crate::indexed::Indexed;
use crate::log::Demand;
use crate::place::{Place, Position};
use crate::staging::Staged;
use crate::view::{Glance, View};

/// What tables have of a key, as [`Engine::find`] found it. It counts while no memtable is frozen: what is changed meanwhile lies above it.
#[derive(Clone, Debug)]
pub struct Found {
    pub(crate) body: Option<Bytes>,
    /// Of the key.
    hash: u64,
    /// How many memtables had been frozen then; none: it lies in memory, and there is nothing to hand over.
    freezes: Option<u64>,
}

impl Found {
    /// Whether a look at the tables of this view would find the same.
    pub(crate) fn counts_in(&self, view: &View, key: &FullKey) -> bool {
        self.freezes == Some(view.freezes) && self.hash == key.hash
    }
}

/// What another thread did for an update that does not wait for the disk.
#[derive(Default, Debug)]
pub struct Prepared {
    /// What it found of the key.
    pub found: Option<Found>,
    /// The record, staged: for those that [`Engine::is_large`] names.
    pub staged: Option<Staged>,
}

impl Engine {
    /// Applies a rule to a key: `rule` sees the register under the key's lock, and the change that it returns, if any, is appended to the log and
    /// carried out before anybody else sees the key. `record` is stored by a change that
    /// [takes one](Change::takes_record); `stored_at` is this replica's physical time. Reads the disk, before the lock is taken, where the key
    /// has not been used for long.
    ///
    /// # Errors
    /// All mean that nothing changed. A rule that returns no change fails only where the key cannot be read ([`WriteError::Read`]).
    ///
    /// # Panics
    /// If the change takes a record and there is none, or commits by name what is not pending: a broken rule.
    pub fn update<R>(
        &self,
        key: KeyRef<'_>,
        record: Option<&Record>,
        stored_at: Millis,
        rule: impl FnOnce(&Register<Place>) -> (R, Option<Change>),
    ) -> Result<Updated<R>, WriteError> {
        self.update_with(key, (None, Wait::Allowed), Incoming::of(record), stored_at, rule)
    }

    /// Like [`update`](Self::update), with a record that was [staged](Self::stage). Where the change takes none it becomes garbage.
    ///
    /// # Panics
    /// Also if the record was staged for another key.
    pub fn update_staged<R>(
        &self,
        key: KeyRef<'_>,
        staged: Staged,
        stored_at: Millis,
        rule: impl FnOnce(&Register<Place>) -> (R, Option<Change>),
    ) -> Result<Updated<R>, WriteError> {
        self.update_with(key, (None, Wait::Allowed), Incoming::staged(&staged, key), stored_at, rule)
    }

    /// Like [`update`](Self::update), but without waiting for the disk. `prepared` is what another thread did for it meanwhile, if it did.
    ///
    /// # Errors
    /// [`ReadError::WouldBlock`]: have another thread [`find`](Self::find) it, and come back with that. The rule was not asked.
    ///
    /// # Panics
    /// As [`update`](Self::update) and [`update_staged`](Self::update_staged).
    pub fn try_update<R>(
        &self,
        key: KeyRef<'_>,
        prepared: Prepared,
        record: Option<&Record>,
        stored_at: Millis,
        rule: impl FnOnce(&Register<Place>) -> (R, Option<Change>),
    ) -> Result<Updated<R>, WriteError> {
        let Prepared { found, staged } = prepared;
        let record = staged.as_ref().map_or(Incoming::of(record), |staged| Incoming::staged(staged, key));
        self.update_with(key, (found, Wait::Never), record, stored_at, rule)
    }

    /// Reads from the disk what [`try_update`](Self::try_update) and [`try_entry`](Self::try_entry) need of a key.
    pub fn find(&self, key: KeyRef<'_>) -> Result<Found, ReadError> {
        let (full, view) = (FullKey::new(key), self.view());
        let (body, freezes) = match view.glance(full.bytes(), full.hash) {
            Glance::Unknown => (self.find_in_tables(&view, &full, Wait::Allowed)?, Some(view.freezes)),
            Glance::Found(..) | Glance::Absent => (None, None),
        };
        Ok(Found { body, hash: full.hash, freezes })
    }

    fn update_with<R>(
        &self,
        key: KeyRef<'_>,
        below: (Option<Found>, Wait),
        record: Incoming<'_>,
        stored_at: Millis,
        rule: impl FnOnce(&Register<Place>) -> (R, Option<Change>),
    ) -> Result<Updated<R>, WriteError> {
        let mut wake = false;
        let updated = self.update_under_lock(key, below, record, stored_at, rule, &mut wake);
        if wake {
            self.log.announce();
        }
        if let Err(error) = &updated
            && !matches!(error, WriteError::Read(ReadError::WouldBlock))
        {
            count(&self.counters.refused, 1);
            if matches!(error, WriteError::Overloaded | WriteError::DiskFull) {
                self.begin_stall();
            }
        }
        updated
    }

    fn update_under_lock<R>(
        &self,
        key: KeyRef<'_>,
        (mut found, wait): (Option<Found>, Wait),
        record: Incoming<'_>,
        stored_at: Millis,
        rule: impl FnOnce(&Register<Place>) -> (R, Option<Change>),
        wake: &mut bool,
    ) -> Result<Updated<R>, WriteError> {
        let full = FullKey::new(key);
        loop {
            let mut guard = self.memtable.lock(key.partition);
            let shard = &mut *guard;
            let slot = shard.find(full.hash, full.bytes());
            let view;
            let (body, position) = match slot {
                Some(slot) => (Some(shard.body(slot)), shard.position(slot)),
                None => match shard.hot.find(full.hash, full.bytes()) {
                    Some(hot) => (Some(shard.hot.body(hot)), Position::ZERO),
                    None => {
                        view = self.view();
                        match &found {
                            Some(found) if found.counts_in(&view, &full) => (found.body.as_deref(), Position::ZERO),
                            _ => match view.glance(full.bytes(), full.hash) {
                                Glance::Found(body, position) => (Some(body), position),
                                Glance::Absent => (None, Position::ZERO),
                                Glance::Unknown => {
                                    // No lock is held across I/O: what is found counts only if the key has not come into the memtable
                                    // meanwhile, nor left it for a younger frozen one.
                                    drop(guard);
                                    let body = self.find_in_tables(&view, &full, wait)?;
                                    found = Some(Found { body, hash: full.hash, freezes: Some(view.freezes) });
                                    continue;
                                }
                            },
                        }
                    }
                },
            };
            let mut indexed = match body {
                Some(body) => Indexed::decode(body).map_err(|malformed| self.malformed(key, malformed))?,
                None => Indexed::default(),
            };
            let mut entry = Entry { register: indexed.register, position };
            let (reply, change) = rule(&entry.register);
            let Some(change) = change else {
                entry.position = self.shown_position(&entry);
                return Ok(Updated { reply, entry });
            };
            let head = record.head().filter(|_| change.takes_record());
            // What could not be replayed must not reach the log.
            assert!(head.is_some() || !change.takes_record(), "a change that takes a record comes with one");
            if let Change::Commit { ballot } = change {
                let pending = entry.register.pending.map(|(pending, _)| pending);
                assert_eq!(pending, Some(ballot), "a commit by name finds its pending");
            }
            let mut frame = record.encode(key, &change, stored_at)?;
            let demand = demand(key, &change, head);
            self.check_memory(demand.is_exempt)?;
            let (place, position) = self.log.append(&mut frame.bytes, demand, wake)?;
            if !demand.is_exempt {
                self.end_stall();
            }
            let old = entry.register;
            let place = match record {
                Incoming::Staged(staged) => {
                    staged.hold.segment().name_at(position);
                    staged.place
                }
                _ => self.options.place_of(place, frame.body().bytes.len()),
            };
            let held = head.map(|head| Held { head, place });
            indexed.apply(change, held, stored_at, held.is_some_and(|h| h.place.is_inline()).then(|| frame.body()));
            entry = Entry { register: indexed.register, position };
            let mut body = Vec::with_capacity(96 + if place.is_inline() { place.len as usize } else { 0 });
            indexed.encode(&mut body);
            self.segments.account(&old, &entry.register);
            self.count_key(&old, &entry.register);
            self.memtable.change_digest(shard, (full.hash, full.bytes()), &old, &entry.register);
            self.memtable.put(shard, slot, full.hash, full.bytes(), &body, position);
            count(&self.counters.writes, 1);
            return Ok(Updated { reply, entry });
        }
    }
}

/// The record that comes with a change.
#[derive(Clone, Copy)]
enum Incoming<'a> {
    None,
    Whole(&'a Record),
    Staged(&'a Staged),
}

impl<'a> Incoming<'a> {
    fn of(record: Option<&'a Record>) -> Self {
        record.map_or(Self::None, Self::Whole)
    }

    fn staged(staged: &'a Staged, key: KeyRef<'_>) -> Self {
        assert_eq!(staged.key, crate::table::key(key), "a record is staged for one key");
        Self::Staged(staged)
    }

    fn head(&self) -> Option<RecordHead> {
        match self {
            Self::None => None,
            Self::Whole(record) => Some(record.head()),
            Self::Staged(staged) => Some(staged.head),
        }
    }

    fn encode(&self, key: KeyRef<'_>, change: &Change, stored_at: Millis) -> Result<Encoded, WriteError> {
        match self {
            Self::Staged(staged) if change.takes_record() => {
                frame::encode_elsewhere(key, change, staged.head, staged.place, stored_at)
            }
            Self::Whole(record) => frame::encode(key, change, Some(record), stored_at),
            Self::None | Self::Staged(_) => frame::encode(key, change, None, stored_at),
        }
    }
}

/// Promises and accepts are synced always. They, whatever ends something, and the cluster's own keys go on while the reserve lasts.
fn demand(key: KeyRef<'_>, change: &Change, record: Option<RecordHead>) -> Demand {
    let ends = match change {
        Change::Promise { .. } | Change::Commit { .. } | Change::Forget | Change::Purge => true,
        Change::Accept { .. } | Change::Store { .. } => record.is_none_or(|record| record.tombstone),
    };
    Demand {
        is_exempt: ends || key.keyspace == KeyspaceId::SYSTEM,
        must_sync: matches!(change, Change::Promise { .. } | Change::Accept { .. }),
    }
}
