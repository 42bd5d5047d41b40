//! What the clients of a schedule were told, as a history.

use bytes::Bytes;
use dunlin_protocol::register::RecordView;
use dunlin_protocol::{Condition, Mutation, Stamp};

use crate::effect::Ending;
use crate::explore::history::{Change, Event, Expected, Step};

use super::{Asked, Operation, Status, World};

impl World {
    fn value(&self, stamp: Stamp) -> Option<Bytes> {
        self.network.record(stamp).and_then(|record| record.content.bytes().cloned())
    }

    /// None: what was told about an operation contradicts itself.
    pub(super) fn events(&self) -> Option<Vec<Event>> {
        let told = |wanted: fn(&Ending) -> bool| {
            let tells = move |o: &Operation| matches!(&o.status, Status::Answered(ending) if wanted(ending));
            let queried = move |o: &Operation| match o.asked {
                Asked::Outcome { of } => Some(of),
                _ => None,
            };
            let of = self.operations.iter().enumerate().filter(move |(_, o)| tells(o));
            of.map(move |(id, o)| queried(o).unwrap_or(id)).collect::<Vec<_>>()
        };
        let never = told(|ending| matches!(ending, Ending::NotApplied));
        let applied = told(|ending| matches!(ending, Ending::OutcomeApplied { .. } | Ending::Applied { .. }));
        if never.iter().any(|operation| applied.contains(operation)) {
            return None;
        }
        let mut events = Vec::new();
        for (id, operation) in self.operations.iter().enumerate() {
            let failed =
                matches!(operation.status, Status::Answered(Ending::ConditionFailed { .. } | Ending::NotANumber));
            if applied.contains(&id) && (failed || operation.status == Status::Void) {
                return None;
            }
            let Some(step) = self.step(operation, never.contains(&id)) else { continue };
            let must = operation.answered < u64::MAX || applied.contains(&id);
            events.push(Event { id, invoked: operation.invoked, answered: operation.answered, must, step });
        }
        Some(events)
    }

    /// None: it has no place in the order.
    fn step(&self, operation: &Operation, never: bool) -> Option<Step> {
        let value_of = |record: &RecordView| record.content.as_ref().and_then(|content| content.bytes().cloned());
        let (condition, mutation) = match (&operation.asked, &operation.status) {
            (Asked::Read, Status::Answered(Ending::Read { record, .. })) => {
                return Some(Step::Read(value_of(record)));
            }
            (Asked::Outcome { of }, Status::Answered(Ending::OutcomeApplied { .. })) => {
                return Some(Step::Applied(*of));
            }
            (Asked::Write { condition, mutation, .. }, _) => (condition, mutation),
            _ => return None,
        };
        let condition = match condition {
            None => Expected::Anything,
            Some(Condition::Absent) => Expected::Absent,
            Some(Condition::Value(value)) => Expected::Value(value.clone()),
            Some(Condition::Version(version)) => Expected::Version(self.value(*version)),
        };
        let mut known = None;
        match &operation.status {
            Status::Answered(Ending::ConditionFailed { current }) => {
                return Some(Step::Failed { condition, current: self.value(*current) });
            }
            Status::Answered(Ending::NotANumber) => {
                let Mutation::Increment { by } = mutation else { panic!("only an increment needs a number") };
                return Some(Step::NotANumber { by: *by });
            }
            Status::Answered(Ending::Applied { number, .. }) => known = *number,
            Status::Void => return None,
            _ => {}
        }
        if never {
            return None;
        }
        let change = match mutation {
            Mutation::Put { value, ttl_millis, .. } => Change::Put { value: value.clone(), expires: *ttl_millis > 0 },
            Mutation::Delete => Change::Delete,
            Mutation::Increment { by } => Change::Add(*by),
        };
        Some(Step::Write { condition, change, number: known })
    }
}
