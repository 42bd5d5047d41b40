//! Replicas for tests: real registers, their records in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use dunlin_protocol::register::{
    Held, PendingView, RecordView, Register, RegisterReply, RegisterRequest, Verdict, View, Want,
};
use dunlin_protocol::{Ballot, Content, Millis, OpId, Record, ReplicaSet, Stamp, Tick, Times};

pub(crate) const SPECULATE_AFTER: Duration = Duration::from_nanos(20);
pub(crate) const PATIENCE: Duration = Duration::from_nanos(30);
pub(crate) const DEADLINE: Tick = Tick(1000);

pub(crate) fn stamp(n: u64) -> Stamp {
    Stamp::new(Millis(n), 0, 1)
}

pub(crate) fn record(op_id: OpId) -> Record {
    Record::plain(op_id, Content::value(op_id.to_string()), Millis::NONE)
}

pub(crate) fn of(replicas: &[usize]) -> ReplicaSet {
    replicas.iter().copied().collect()
}

#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) registers: Vec<Register<usize>>,
    records: Vec<Record>,
    /// Who ever accepted at which ballot.
    pub(crate) accepted: BTreeMap<Ballot, ReplicaSet>,
}

impl Cluster {
    pub(crate) fn new(replicas: usize) -> Self {
        Self { registers: vec![Register::default(); replicas], ..Self::default() }
    }

    /// A cluster after these requests.
    pub(crate) fn after(replicas: usize, history: &[(&[usize], RegisterRequest)]) -> Self {
        let mut cluster = Self::new(replicas);
        for (to, request) in history {
            to.iter().for_each(|replica| drop(cluster.handle(*replica, request)));
        }
        cluster
    }

    pub(crate) fn was_stored(&self, stamp: Stamp) -> bool {
        self.records.iter().any(|r| r.stamp == stamp)
    }

    /// A full record that some replica ever stored.
    pub(crate) fn record(&self, stamp: Stamp) -> Record {
        match stamp.is_zero() {
            true => Record::absent(),
            false => self.records.iter().find(|r| r.stamp == stamp).cloned().expect("stored at some time"),
        }
    }

    pub(crate) fn handle(&mut self, replica: usize, request: &RegisterRequest) -> RegisterReply {
        let decision = self.registers[replica].decide(request, Millis(1), &Times::default());
        if let Some(change) = decision.change {
            let record = match request {
                RegisterRequest::Write { record }
                | RegisterRequest::Accept { record, .. }
                | RegisterRequest::Install { record, .. } => Some(record.clone()),
                RegisterRequest::Commit { record, .. } => record.clone(),
                _ => None,
            };
            let held = record.filter(|_| change.takes_record()).map(|record| {
                self.records.push(record);
                let place = self.records.len() - 1;
                Held { head: self.records[place].head(), place }
            });
            self.registers[replica].apply(change, held, Millis(1));
        }
        if let (RegisterRequest::Accept { ballot, .. }, Verdict::Accepted) = (request, decision.verdict) {
            self.accepted.entry(*ballot).or_default().insert(replica);
        }
        let Ok(reply) = decision.verdict.into_reply(|want| Ok::<_, Infallible>(self.view(replica, want)));
        reply
    }

    pub(crate) fn view(&self, replica: usize, want: Want) -> View {
        let shown = |held: &Held<usize>| {
            let record = &self.records[held.place];
            let has_content = held.head.tombstone || want.value_upto > 0;
            RecordView {
                head: held.head,
                lineage: want.lineage.then(|| record.lineage.clone()),
                content: has_content.then(|| record.content.clone()),
            }
        };
        let register = &self.registers[replica];
        View {
            record: register.record.as_ref().map_or_else(RecordView::absent, shown),
            ballot: register.ballot,
            promised: register.promised,
            pending: register
                .pending
                .as_ref()
                .map(|(ballot, held)| PendingView { ballot: *ballot, record: shown(held) }),
        }
    }
}
