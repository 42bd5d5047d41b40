//! `ColdRead`: what a node has to read from the disk, or to write to it, and must not wait for itself.

use dunlin_protocol::message::{PeerReplyBody, RegisterCall, ReplicaScan};
use dunlin_protocol::register::{RegisterReply, RegisterRequest, Verdict, Want};
use dunlin_protocol::{Key, KeyspaceId, PartitionId, Record};
use dunlin_storage::{Engine, Entry, Found, KeyRef, Position, Prepared, Wait};

use crate::reading::Reading;
use crate::replica::Asker;

/// A read that would wait for the disk, or a large record to be staged. Whoever owns the node [carries it out](Self::carry_out) where waiting harms nobody, and brings what comes of
/// it back as [`Input::Read`](crate::Input::Read). Reads may overtake each other.
#[derive(Debug)]
pub struct ColdRead(Box<Work>);

/// What came of a [`ColdRead`].
#[derive(Debug)]
pub struct ReadDone(Box<Done>);

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a `ColdRead` is a box around it")]
pub(crate) enum Work {
    /// What tables have of a key, and a place for a large record, for the register's rule, which then runs on the node's thread.
    Prepare { asker: Asker, call: RegisterCall },
    /// A key as it is.
    Look { asker: Asker, call: RegisterCall, want: Want },
    /// The records that go with what was decided.
    Show { asker: Asker, call: RegisterCall, entry: Entry, verdict: Verdict },
    /// A page of keys.
    Page { asker: Asker, scan: ReplicaScan },
    /// What tables have of a key, before this flight of the coordinator sends anything.
    Check { flight: u64, partition: PartitionId, keyspace: KeyspaceId, key: Key },
}

#[derive(Debug)]
pub(crate) enum Done {
    Prepared { asker: Asker, call: RegisterCall, prepared: Result<Prepared, PeerReplyBody> },
    Shown { asker: Asker, call: RegisterCall, shown: Result<(PeerReplyBody, Position), PeerReplyBody> },
    Page { asker: Asker, scan: ReplicaScan, page: Result<(PeerReplyBody, Position), PeerReplyBody> },
    Checked { flight: u64, found: Option<Found> },
}

impl From<Work> for ColdRead {
    fn from(work: Work) -> Self {
        Self(Box::new(work))
    }
}

impl ColdRead {
    /// Reads, and waits for the disk as long as that takes.
    pub fn carry_out(self, engine: &Engine) -> ReadDone {
        let reading = Reading { engine, wait: Wait::Allowed };
        ReadDone(Box::new(match *self.0 {
            Work::Prepare { asker, call } => {
                let prepared = reading.prepare(&[&call]).pop().expect("as many as were asked for");
                Done::Prepared { asker, prepared, call }
            }
            Work::Look { asker, call, want } => {
                let seen = reading.look(key_of(&call), want);
                let shown = seen.map(|(view, position)| (PeerReplyBody::Register(RegisterReply::View(view)), position));
                Done::Shown { asker, shown: shown.map_err(|unread| unread.into_refusal()), call }
            }
            Work::Show { asker, call, entry, verdict } => {
                let reply = verdict.into_reply(|want| reading.view(key_of(&call), &entry, want));
                let shown = reply.map(|reply| (PeerReplyBody::Register(reply), entry.position));
                Done::Shown { asker, shown: shown.map_err(|unread| unread.into_refusal()), call }
            }
            Work::Page { asker, scan } => {
                let page = reading.page(&scan).map(|(page, position)| (PeerReplyBody::Page(page), position));
                Done::Page { asker, scan, page: page.map_err(|unread| unread.into_refusal()) }
            }
            Work::Check { flight, partition, keyspace, key } => {
                let found = reading.find(KeyRef { partition, keyspace, key: key.as_bytes() });
                // What cannot be read is told by the write itself.
                Done::Checked { flight, found: found.ok() }
            }
        }))
    }

    /// Whether a large record is to be staged: whoever has several of them carries them out [together](Self::carry_out_together).
    pub(crate) fn stages(&self, engine: &Engine) -> bool {
        match &*self.0 {
            Work::Prepare { call, .. } => record_of(&call.request).is_some_and(|record| engine.is_large(record)),
            _ => false,
        }
    }

    /// Like [`carry_out`](Self::carry_out), with one sync for all that are staged.
    pub(crate) fn carry_out_together(reads: Vec<Self>, engine: &Engine) -> Vec<ReadDone> {
        let mut done = Vec::with_capacity(reads.len());
        let mut calls = Vec::new();
        for read in reads {
            match *read.0 {
                Work::Prepare { asker, call } => calls.push((asker, call)),
                other => done.push(Self(Box::new(other)).carry_out(engine)),
            }
        }
        let reading = Reading { engine, wait: Wait::Allowed };
        let all = reading.prepare(&calls.iter().map(|(_, call)| call).collect::<Vec<_>>());
        let prepared = calls.into_iter().zip(all);
        done.extend(
            prepared.map(|((asker, call), prepared)| ReadDone(Box::new(Done::Prepared { asker, call, prepared }))),
        );
        done
    }

    /// The bytes of the value that waits with it.
    pub(crate) fn bytes(&self) -> usize {
        match &*self.0 {
            Work::Prepare { call, .. } => value_bytes(call),
            _ => 0,
        }
    }
}

impl ReadDone {
    pub(crate) fn into_done(self) -> Done {
        *self.0
    }

    /// As [`ColdRead::bytes`].
    pub(crate) fn bytes(&self) -> usize {
        match &*self.0 {
            Done::Prepared { call, .. } => value_bytes(call),
            _ => 0,
        }
    }
}

/// The key that a call is about.
pub(crate) fn key_of(call: &RegisterCall) -> KeyRef<'_> {
    KeyRef { partition: call.partition, keyspace: call.keyspace, key: call.key.as_bytes() }
}

/// The record that a request brings.
pub(crate) fn record_of(request: &RegisterRequest) -> Option<&Record> {
    match request {
        RegisterRequest::Write { record }
        | RegisterRequest::Accept { record, .. }
        | RegisterRequest::Install { record, .. }
        | RegisterRequest::Commit { record: Some(record), .. } => Some(record),
        _ => None,
    }
}

fn value_bytes(call: &RegisterCall) -> usize {
    record_of(&call.request).and_then(|record| record.content.bytes()).map_or(0, |bytes| bytes.len())
}
