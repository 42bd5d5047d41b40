//! `Agenda`: what is still to happen, in order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use bytes::Bytes;
use dunlin_node::{ColdRead, ReadDone};
use dunlin_protocol::{Millis, Tick};

use crate::network::{ConnectionId, End};
use crate::workload::Phase;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Event {
    /// A client looks at what it is to do.
    Client { client: usize },
    /// A node's timer, in one of its lives.
    Timer { node: usize, life: u32 },
    /// The log writer's step is done.
    Write { node: usize, life: u32 },
    /// The clock's reserve is on the disk.
    Reserved { node: usize, life: u32, until: Millis },
    /// The disk reads for a node.
    Read { node: usize, life: u32, read: ColdRead },
    /// What it has read gets to the node.
    WasRead { node: usize, life: u32, done: ReadDone },
    /// A node starts again.
    Restart { node: usize },
    /// A connection is there, for this end.
    Opened { connection: ConnectionId, end: End },
    /// This end notices that the connection is gone.
    Closed { connection: ConnectionId, end: End },
    /// A node tries to connect to another one.
    Dial { from: usize, to: usize },
    /// A client's attempt to connect has failed.
    DialFailed { client: usize, node: usize },
    /// A frame arrives at this end.
    Frame { connection: ConnectionId, end: End, bytes: Bytes },
    /// A datagram arrives at this end.
    Datagram { connection: ConnectionId, end: End, bytes: Bytes },
    /// Nothing got from one site to the other since `since`: connections that live on it idle out.
    Idle { from: usize, to: usize, since: Tick },
    /// A fault begins.
    FaultBegins { fault: usize },
    /// A fault ends.
    FaultEnds { fault: usize },
    /// Everything is healed.
    Heal,
    /// Operations that must succeed begin.
    Demand { phase: Phase },
    /// A node loses power, by a fault.
    Crash { fault: usize, node: usize },
    /// The run is over.
    End,
}

#[derive(Debug)]
struct Entry {
    at: Tick,
    sequence: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// Virtual time and the events to come, in order of (time, sequence): what was put in first happens first.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    now: Tick,
    sequence: u64,
    heap: BinaryHeap<Reverse<Entry>>,
}

impl Agenda {
    pub(crate) fn now(&self) -> Tick {
        self.now
    }

    /// Plans an event; one in the past happens now.
    pub(crate) fn at(&mut self, at: Tick, event: Event) {
        self.sequence += 1;
        self.heap.push(Reverse(Entry { at: at.max(self.now), sequence: self.sequence, event }));
    }

    pub(crate) fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// The next event; time moves on to it.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_planning() {
        let mut agenda = Agenda::default();
        agenda.at(Tick(5), Event::Client { client: 1 });
        agenda.at(Tick(3), Event::Client { client: 2 });
        agenda.at(Tick(5), Event::Client { client: 3 });
        let mut order = Vec::new();
        while let Some(Event::Client { client }) = agenda.pop() {
            order.push((agenda.now().0, client));
            if client == 1 {
                agenda.at(Tick(1), Event::Client { client: 4 });
            }
        }
        assert_eq!(order, [(3, 2), (5, 1), (5, 3), (5, 4)]);
    }
}
