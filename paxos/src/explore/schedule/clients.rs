//! What the clients of a schedule ask, and how they go on without an answer.

use std::time::Duration;

use bytes::Bytes;
use dunlin_protocol::{Attributes, Condition, Millis, Mutation, Stamp, Window};

use super::{Asked, Client, Focus, MAX_OPERATIONS, Machine, Operation, Status, World};

impl World {
    /// A random idle client does its next operation.
    pub(super) fn begin(&mut self) -> bool {
        let idle = |c: &Client| c.left > 0 && c.waits_for.is_none();
        let idle: Vec<usize> = (0..self.clients.len()).filter(|&c| idle(&self.clients[c])).collect();
        if idle.is_empty() || self.operations.len() >= MAX_OPERATIONS {
            return false;
        }
        // The plain writer comes first or not at all, mostly: later the key is serial.
        let client = match self.operations.is_empty() && self.random.percent(50) {
            true => idle[idle.len() - 1],
            false => self.random.pick(&idle),
        };
        self.clients[client].left -= 1;
        let node = self.random.below(self.nodes.len());
        let asked = self.ask(client);
        let operation = self.invoke(asked, node);
        self.attempt(client, operation, node);
        true
    }

    fn ask(&mut self, client: usize) -> Asked {
        let ttl = if self.expiring && self.random.percent(60) { 1 + self.random.below(60) as u64 } else { 0 };
        self.next_value += 1;
        let value = if self.random.percent(5) { Bytes::from("no number") } else { self.next_value.to_string().into() };
        let put = Mutation::Put { value, attributes: Attributes::default(), ttl_millis: ttl };
        if self.clients[client].writes_plainly {
            let mutation = if self.random.percent(15) { Mutation::Delete } else { put };
            return Asked::Write { condition: None, mutation, plain: true };
        }
        // Of an operation under way too: then its later attempts find what the query decided.
        let open = [Status::Unknown, Status::Running];
        let unanswered = |o: &Operation| open.contains(&o.status) && matches!(o.asked, Asked::Write { .. });
        let unanswered: Vec<usize> = (0..self.operations.len()).filter(|&o| unanswered(&self.operations[o])).collect();
        if self.with_queries && !unanswered.is_empty() && self.random.percent(40) {
            return Asked::Outcome { of: self.random.pick(&unanswered) };
        }
        let range = if self.focus == Focus::Duels { 3 } else { 12 }.min(self.next_value - 100);
        let earlier = (self.next_value - self.random.below(range as usize) as i64).to_string();
        let serial = |condition, mutation| Asked::Write { condition, mutation, plain: false };
        let add = 1000 * (1 + self.random.below(3) as i64);
        let kinds: &[usize] = match self.focus {
            Focus::Broad => &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            Focus::Duels => &[0, 2, 2, 3, 5, 5, 5, 5, 8],
            Focus::Endings => &[0, 0, 0, 0, 0, 2],
        };
        match self.random.pick(kinds) {
            0 | 1 => Asked::Read,
            2 => serial(None, put),
            3 => serial(None, Mutation::Delete),
            4 => serial(Some(Condition::Absent), put),
            5 => serial(Some(Condition::Value(earlier.into())), put),
            6 => serial(Some(Condition::Version(self.clients[client].version)), put),
            7 => serial(Some(Condition::Version(self.clients[client].version)), Mutation::Delete),
            _ => serial(None, Mutation::Increment { by: add }),
        }
    }

    pub(super) fn invoke(&mut self, asked: Asked, node: usize) -> usize {
        let op_id = match asked {
            Asked::Outcome { of } => self.operations[of].op_id,
            _ => self.draw(node),
        };
        if matches!(asked, Asked::Write { plain: true, .. }) {
            self.last_plain = op_id;
        }
        let limit = match asked {
            Asked::Outcome { of } => self.operations[of].limit,
            _ => 0,
        };
        self.moment += 1;
        let (invoked, answered) = (self.moment, u64::MAX);
        self.operations.push(Operation {
            asked,
            op_id,
            invoked,
            answered,
            status: Status::Running,
            attempts: 0,
            limit,
        });
        self.operations.len() - 1
    }

    /// Waits until the node's physical clock is near its hybrid clock, which far windows may have dragged along.
    fn draw(&mut self, node: usize) -> Stamp {
        loop {
            let now = self.now(node);
            match self.nodes[node].clock.draw_above(self.last_plain, now.wall) {
                Ok(stamp) => return stamp,
                Err(_) => self.tick = self.tick + Duration::from_millis(100),
            }
        }
    }

    /// The client sends the operation to a node, once more or for the first time.
    pub(super) fn attempt(&mut self, client: usize, operation: usize, node: usize) {
        let widths: &[u64] = match self.focus {
            Focus::Broad => &[5, 40, 400, 400, 3000],
            Focus::Duels => &[400],
            // Later attempts drag the clocks up to the limits of the earlier ones: that would hide how they differ.
            Focus::Endings => &[20],
        };
        let width = Duration::from_millis(self.random.pick(widths));
        let now = self.now(node);
        let state = &mut self.operations[operation];
        let tried = state.attempts > 0;
        state.attempts += 1;
        self.counts.retried += u64::from(tried);
        let (window, deadline) = match &state.asked {
            Asked::Read => (Window::OPEN, Duration::from_secs(60)),
            // D is 1.2's, the query has none; F is the latest D of all attempts.
            Asked::Outcome { .. } => (Window { floor: state.limit, limit: u64::MAX }, 2 * width),
            Asked::Write { .. } => {
                let floor = Millis(state.limit >> 16);
                let window = Window::until(state.limit, now.wall.max(floor) + width);
                state.limit = window.limit;
                (window, width * 4)
            }
        };
        let plain = match &state.asked {
            Asked::Write { mutation, plain: true, .. } if !tried => Some(mutation.clone()),
            _ => None,
        };
        let machine = self.machines.len();
        self.machines.push(Machine { operation, node, client, work: None });
        self.clients[client].waits_for = Some(machine);
        match plain {
            Some(mutation) => self.write_plainly(machine, mutation),
            None => self.propose(machine, tried, window, self.tick + deadline),
        }
    }

    /// The client waits no longer; the coordinator goes on, or has crashed.
    pub(super) fn quit(&mut self) {
        let waiting: Vec<usize> = self.clients.iter().filter_map(|client| client.waits_for).collect();
        if waiting.is_empty() {
            return;
        }
        let machine = self.random.pick(&waiting);
        if self.random.percent(40) {
            self.machines[machine].work = None;
        }
        self.go_on(machine, true);
    }

    /// No answer: the client tries again, or leaves it. `sent`: something that may take effect was sent.
    pub(super) fn go_on(&mut self, machine: usize, sent: bool) {
        let Machine { operation, client, .. } = self.machines[machine];
        let state = &mut self.operations[operation];
        let again = matches!(state.asked, Asked::Write { .. }) && state.attempts < 4;
        if again && self.random.percent(65) {
            let node = self.random.below(self.nodes.len());
            return self.attempt(client, operation, node);
        }
        self.clients[client].waits_for = None;
        let sent = sent || state.attempts > 1;
        state.status = if sent { Status::Unknown } else { Status::Void };
        match sent {
            true => self.counts.unknown += 1,
            false => self.counts.void += 1,
        }
    }
}
