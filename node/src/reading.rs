//! What a replica shows of what it holds: registers with their records, and pages of keys.

use dunlin_protocol::message::{PageEntry, PeerReplyBody, RegisterCall, ReplicaPage, ReplicaScan};
use dunlin_protocol::register::{Held, PendingView, RecordView, View, Want};
use dunlin_protocol::{Content, Key, Status};
use dunlin_storage::{Engine, Entry, Found, KeyRef, Place, Position, Prepared, ReadError, ScanRange, Wait};

use crate::cold_read::{key_of, record_of};
use crate::replica::refuse;

/// A page never carries more than this many bytes of values and keys, whatever was asked: it must fit a frame.
const PAGE_BYTES: usize = 1 << 20;
/// The most entries in a page.
const PAGE_ENTRIES: u32 = 4096;

/// The engine, read by who may wait for the disk or by who may not.
pub(crate) struct Reading<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) wait: Wait,
}

/// Why there is nothing to show.
#[expect(clippy::large_enum_variant, reason = "it is passed on at once")]
pub(crate) enum Unread {
    /// It has to be read by who may wait: the disk has it, or damage that is to be noted durably.
    Cold,
    /// Meanwhile the key holds another record.
    Superseded,
    Refused(PeerReplyBody),
}

impl Unread {
    /// What is told where nobody tries again.
    pub(crate) fn into_refusal(self) -> PeerReplyBody {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Cold | Self::Superseded => {
                refuse(Status::Overloaded, "the record was replaced while it was being read")
            }
        }
    }
}

impl Reading<'_> {
    /// What tables have of a key; waits.
    pub(crate) fn find(&self, key: KeyRef<'_>) -> Result<Found, PeerReplyBody> {
        self.engine.find(key).map_err(|error| self.unread(&error).into_refusal())
    }

    /// What changes need that would wait for the disk; waits. Large records are synced together.
    pub(crate) fn prepare(&self, calls: &[&RegisterCall]) -> Vec<Result<Prepared, PeerReplyBody>> {
        let large = |call: &RegisterCall| record_of(&call.request).is_some_and(|record| self.engine.is_large(record));
        let of_call = |call: &&RegisterCall| Ok((self.find(key_of(call))?, large(call)));
        let found: Vec<Result<(Found, bool), PeerReplyBody>> = calls.iter().map(of_call).collect();
        let mut records = Vec::new();
        for (call, _) in calls.iter().zip(&found).filter(|(_, found)| matches!(found, Ok((_, true)))) {
            records.extend(record_of(&call.request).map(|record| (key_of(call), record)));
        }
        let (mut staged, mut refusal) = (Vec::new().into_iter(), None);
        if !records.is_empty() {
            match self.engine.stage(&records) {
                Ok(all) => staged = all.into_iter(),
                Err(error) => refusal = Some(refuse(error.status(), error.to_string())),
            }
        }
        let mut prepare = |(found, is_large): (Found, bool)| match &refusal {
            Some(refusal) if is_large => Err(refusal.clone()),
            _ => Ok(Prepared { found: Some(found), staged: if is_large { staged.next() } else { None } }),
        };
        found.into_iter().map(|found| found.and_then(&mut prepare)).collect()
    }

    /// A register as an entry has it. Superseded: the entry is not the present one any more, and its records are gone.
    pub(crate) fn view(&self, key: KeyRef<'_>, entry: &Entry, want: Want) -> Result<View, Unread> {
        let register = &entry.register;
        let record = match &register.record {
            Some(held) => self.record_view(key, held, want)?,
            None => RecordView::absent(),
        };
        let pending = match &register.pending {
            Some((ballot, held)) => Some(PendingView { ballot: *ballot, record: self.record_view(key, held, want)? }),
            None => None,
        };
        Ok(View { record, ballot: register.ballot, promised: register.promised, pending })
    }

    fn record_view(&self, key: KeyRef<'_>, held: &Held<Place>, want: Want) -> Result<RecordView, Unread> {
        let head = held.head;
        let with_content = head.tombstone || head.value_len <= want.value_upto;
        let tombstone = head.tombstone.then_some(Content::Tombstone);
        if !want.lineage && (head.tombstone || !with_content || want == Want::HEAD) {
            return Ok(RecordView { head, lineage: None, content: tombstone });
        }
        let stored = self.engine.try_load(key, held, self.wait).map_err(|error| self.unread(&error))?;
        Ok(RecordView {
            head,
            lineage: want.lineage.then_some(stored.lineage),
            content: with_content.then_some(stored.content),
        })
    }

    /// A register as it is, and what must be durable before it is shown.
    pub(crate) fn look(&self, key: KeyRef<'_>, want: Want) -> Result<(View, Position), Unread> {
        loop {
            let entry = match self.wait {
                Wait::Allowed => self.engine.entry(key),
                Wait::Never => self.engine.try_entry(key, None),
            };
            let entry = entry.map_err(|error| self.unread(&error))?;
            match self.view(key, &entry, want) {
                // What it is now counts.
                Err(Unread::Superseded) => {}
                seen => return Ok((seen?, entry.position)),
            }
        }
    }

    /// A page of keys, and what must be durable before it is shown.
    pub(crate) fn page(&self, scan: &ReplicaScan) -> Result<(ReplicaPage, Position), Unread> {
        let range = ScanRange {
            keyspace: scan.keyspace,
            first: scan.first,
            last: scan.last,
            after: scan.after.as_ref().map(Key::as_bytes),
            prefix: &scan.prefix,
            start: &scan.start,
            end: &scan.end,
        };
        let limit = scan.limit.clamp(1, PAGE_ENTRIES) as usize;
        let limit_bytes = (scan.limit_bytes as usize).clamp(1, PAGE_BYTES);
        let mut found = Vec::new();
        let (mut bytes, mut position) = (0, Position::default());
        let done = self.engine.try_scan(range, limit, self.wait, &mut |partition, key, entry| {
            bytes += key.len() + 64 + frame_bytes(entry, scan.want);
            if bytes > limit_bytes && !found.is_empty() {
                return false;
            }
            position = position.max(entry.position);
            found.push((partition, Key::new(key.to_vec()), *entry));
            true
        });
        let done = done.map_err(|error| self.unread(&error))?;
        let mut entries = Vec::with_capacity(found.len());
        for (partition, key, entry) in found {
            let no_key = |error| refuse(Status::Corruption, format!("a stored key is no key: {error}"));
            let key = key.map_err(|error| Unread::Refused(no_key(error)))?;
            let at = KeyRef { partition, keyspace: scan.keyspace, key: key.as_bytes() };
            let view = match self.view(at, &entry, scan.want) {
                Err(Unread::Superseded) => {
                    let (view, newer) = self.look(at, scan.want)?;
                    position = position.max(newer);
                    view
                }
                seen => seen?,
            };
            entries.push(PageEntry { partition, key, view });
        }
        Ok((ReplicaPage { entries, done }, position))
    }

    /// A record that cannot be read: rot, and the replica must not vote on what it may have lost (PROTOCOL.md 2.5).
    fn unread(&self, error: &ReadError) -> Unread {
        match error {
            ReadError::WouldBlock => return Unread::Cold,
            ReadError::Superseded => return Unread::Superseded,
            ReadError::Damaged(_) if self.wait == Wait::Never => return Unread::Cold,
            ReadError::Damaged(damage) => {
                if let Err(error) = self.engine.mark_damage(damage) {
                    tracing::error!(%error, "the partition could not be marked suspect");
                }
            }
            ReadError::Io { .. } | ReadError::Gone { .. } | ReadError::NoRecord { .. } => {}
        }
        tracing::error!(%error, "a stored record cannot be read");
        Unread::Refused(refuse(error.status(), error.to_string()))
    }
}

/// How many bytes of records a view of this entry loads and carries, at the most.
fn frame_bytes(entry: &Entry, want: Want) -> usize {
    let register = &entry.register;
    let held = register.record.iter().chain(register.pending.iter().map(|(_, held)| held));
    let carried = held.filter(|held| want.lineage || want != Want::HEAD && held.head.value_len <= want.value_upto);
    carried.map(|held| held.place.frame_len() as usize).sum()
}
