//! One key, its replicas, the coordinators and the messages under way. A request is handled in one piece with its reply, or the reply is lost;
//! not delivered is lost, delivered twice is duplicated, delivered in any order is delayed, a coordinator that gives up has crashed.

use std::rc::Rc;
use std::time::Duration;

use dunlin_protocol::register::{RegisterReply, RegisterRequest};
use dunlin_protocol::{Millis, Quorums, ReplicaSet, Stamp, Times, Window};

use super::Break;
use super::clock::Clock;
use super::coordinator::{Answer, Attempt, Coordinator, Task, Terms};
use super::linearizability::{Entry, Status};
use super::replica::Replica;
use super::scenario::{Scenario, Step};

/// Short, in the proportions of the real ones.
pub(crate) const TIMES: Times = Times {
    op_lifetime: Duration::from_secs(2),
    hint_window: Duration::from_secs(2),
    grace: Duration::from_secs(10),
    max_clock_skew: Duration::from_secs(1),
    redraw_window: Duration::from_millis(500),
    attempts_end: Duration::from_secs(2),
};

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) to: usize,
    /// The client whose coordinator sent it; none: a repair.
    pub(crate) from: Option<usize>,
    pub(crate) phase: u32,
    pub(crate) deadline: Millis,
    /// None: not judged yet.
    pub(crate) is_slow: Option<bool>,
    pub(crate) request: Rc<RegisterRequest>,
}

/// A client's place in its script, and its coordinator while that works.
pub(crate) struct Actor {
    pub(crate) clock: Clock,
    pub(crate) next_step: usize,
    pub(crate) work: Option<Work>,
    phases: u32,
}

pub(crate) struct Work {
    pub(crate) coordinator: Coordinator,
    step: Step,
    /// Which attempt at the operation this is.
    attempt: u32,
    /// Added to the coordinator's phase numbers, so that no two attempts of an actor share one.
    base_phase: u32,
    deadline: Millis,
}

/// What is known of an operation besides its history entry.
#[derive(Clone, Copy, Default)]
struct Attempts {
    /// How many retries began.
    retries: u32,
    /// D of the first one.
    first_limit: u64,
    /// The latest D.
    limit: u64,
    /// Serial replicas when it was invoked, less those dropped since.
    serial: ReplicaSet,
}

pub(crate) struct World<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) now: Millis,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) actors: Vec<Actor>,
    pub(crate) messages: Vec<Message>,
    pub(crate) history: Vec<Entry>,
    attempts: Vec<Attempts>,
    terms: Terms,
    pub(crate) collected: u32,
    pub(crate) trace: Option<Vec<String>>,
}

impl<'a> World<'a> {
    pub(crate) fn new(scenario: &'a Scenario, broken: Break, traced: bool) -> Self {
        let replicas: Vec<_> = scenario.replica_offsets.iter().map(|o| Replica::new(*o, broken)).collect();
        let actors = scenario.clients.iter().enumerate().map(|(i, client)| Actor {
            clock: Clock::new(i as u64 + 1, client.clock_offset, client.merges),
            next_step: 0,
            work: None,
            phases: 0,
        });
        let entry = |task: &Task| Entry {
            task: *task,
            status: Status::New,
            op_id: Stamp::ZERO,
            after: 0,
            plainly: false,
            on_serial_key: false,
        };
        let terms = Terms {
            quorums: Quorums::majority(replicas.len()),
            lineage_limit: scenario.lineage_limit,
            rounds: 4,
            plain_at_quorum: scenario.plain_at_quorum,
            broken,
        };
        Self {
            scenario,
            now: Millis(1_000_000),
            actors: actors.collect(),
            messages: Vec::new(),
            history: scenario.tasks.iter().map(entry).collect(),
            attempts: vec![Attempts::default(); scenario.tasks.len()],
            replicas,
            terms,
            collected: 0,
            trace: traced.then(Vec::new),
        }
    }

    fn log(&mut self, line: impl FnOnce(&Self) -> String) {
        if let Some(mut trace) = self.trace.take() {
            trace.push(format!("{:>9} {}", self.now.0, line(self)));
            self.trace = Some(trace);
        }
    }

    pub(crate) fn is_idle(&self, client: usize) -> bool {
        self.actors[client].work.is_none()
    }

    fn next_step(&self, client: usize) -> Option<Step> {
        self.scenario.clients[client].steps.get(self.actors[client].next_step).copied()
    }

    pub(crate) fn next_task(&self, client: usize) -> Option<Task> {
        self.next_step(client).map(|step| self.scenario.tasks[step.op])
    }

    /// Whether the client's next step is there and may begin.
    pub(crate) fn can_start(&self, client: usize) -> bool {
        let Some(step) = self.next_step(client).filter(|_| self.is_idle(client)) else { return false };
        let (asked, is_query) = match self.scenario.tasks[step.op] {
            Task::Outcome(of) => (of, true),
            _ if step.is_retry => (step.op, false),
            _ => return true,
        };
        let (first, place) = self.first_attempt(asked);
        match self.history[asked].status {
            Status::New => {
                self.scenario.overlap && self.scenario.may_come_late && self.actors[first].next_step <= place
            }
            Status::Done(_) => is_query && self.scenario.query_answered,
            Status::Running | Status::Unknown => {
                let at_work = |a: &Actor| a.work.as_ref().is_some_and(|w| w.step.op == asked);
                let begun = self.actors[first].next_step > place;
                self.scenario.overlap || begun && !self.actors.iter().any(at_work)
            }
        }
    }

    /// Which client makes the first attempt, and where in its script.
    fn first_attempt(&self, op: usize) -> (usize, usize) {
        let place = |steps: &[Step]| steps.iter().position(|s| s.op == op && !s.is_retry);
        let mut clients = self.scenario.clients.iter().enumerate();
        clients.find_map(|(i, client)| Some((i, place(&client.steps)?))).expect("every operation has a first attempt")
    }

    /// The client sends its operation for the first time: the op id is drawn.
    fn invoke(&mut self, client: usize, op: usize) {
        let op_id = self.actors[client].clock.draw(self.now);
        let serial = (0..self.replicas.len()).filter(|r| self.replicas[*r].register.is_serial()).collect();
        let answered = |e: &Entry| matches!(e.status, Status::Done(_));
        let after = (0..self.history.len()).filter(|i| answered(&self.history[*i])).fold(0, |bits, i| bits | 1 << i);
        let window = Duration::from_millis(self.scenario.clients[client].window_millis);
        let limit = Window::until(0, op_id.wall() + window).limit;
        self.attempts[op] = Attempts { retries: 0, first_limit: limit, limit, serial };
        let entry = &mut self.history[op];
        (entry.status, entry.op_id, entry.after) = (Status::Running, op_id, after);
        entry.on_serial_key = self.terms.quorums.is_quorum(serial);
    }

    pub(crate) fn start(&mut self, client: usize) {
        let step = self.next_step(client).expect("only who can start does");
        let task = self.scenario.tasks[step.op];
        if self.history[step.op].status == Status::New {
            let first = self.first_attempt(step.op).0;
            self.invoke(first, step.op);
        }
        let subject = match task {
            Task::Outcome(of) => of,
            _ => step.op,
        };
        if self.history[subject].status == Status::New {
            let first = self.first_attempt(subject).0;
            self.invoke(first, subject);
        }
        let (op_id, subject_id) = (self.history[step.op].op_id, self.history[subject].op_id);
        let mut window = Window { floor: 0, limit: self.attempts[step.op].first_limit };
        let mut attempt_number = 0;
        if step.is_retry {
            let floor = self.attempts[step.op].limit;
            let from = self.actors[client].clock.hlc(self.now).max(floor);
            let millis = Duration::from_millis(self.scenario.clients[client].window_millis);
            window = Window::until(floor, Millis(from >> 16) + millis);
            self.attempts[step.op].retries += 1;
            self.attempts[step.op].limit = window.limit;
            attempt_number = self.attempts[step.op].retries;
        } else if !task.is_write() {
            // Nobody asks again for these, so they need no limit; a query begins above what it asks for.
            window =
                Window { floor: if subject == step.op { 0 } else { self.attempts[subject].limit }, ..Window::OPEN };
        }
        if self.terms.broken == Break::IgnoreFloor {
            window.floor = 0;
        }
        let deadline = subject_id.wall() + TIMES.op_lifetime;
        let attempt = Attempt { task, op_id, subject: subject_id, window, deadline, is_retry: step.is_retry };
        self.log(|_| format!("C{client} starts op{} {attempt:?}", step.op));
        let actor = &mut self.actors[client];
        if actor.clock.wall(self.now) > deadline {
            return self.finish(client, step, attempt_number, None, false);
        }
        let coordinator = Coordinator::start(attempt, self.terms, &mut actor.clock, self.now);
        let base_phase = actor.phases;
        actor.work = Some(Work { coordinator, step, attempt: attempt_number, base_phase, deadline });
        self.settle(client);
    }

    /// What tells this phase of the client's coordinator from all others; 0 where it is idle.
    pub(crate) fn phase(&self, client: usize) -> u32 {
        self.actors[client].work.as_ref().map_or(0, |w| w.base_phase + w.coordinator.phase_number)
    }

    /// Sends what the client's coordinator wants sent, and takes its ending.
    fn settle(&mut self, client: usize) {
        let Some(work) = &mut self.actors[client].work else { return };
        let phase = work.base_phase + work.coordinator.phase_number;
        for (to, request) in work.coordinator.outbox.drain(..) {
            let request = Rc::new(request);
            let message = |to| Message {
                to,
                from: Some(client),
                phase,
                deadline: work.deadline,
                is_slow: None,
                request: Rc::clone(&request),
            };
            self.messages.extend(to.iter().map(message));
        }
        if let Some(ending) = work.coordinator.ending {
            let (step, attempt) = (work.step, work.attempt);
            self.finish(client, step, attempt, ending.answer, ending.plainly);
        }
    }

    /// The coordinator answers, or is gone; what the client makes of it.
    fn finish(&mut self, client: usize, step: Step, attempt: u32, answer: Option<Answer>, plainly: bool) {
        self.log(|_| format!("C{client} ends op{}: {answer:?}", step.op));
        let actor = &mut self.actors[client];
        if let Some(work) = actor.work.take() {
            actor.phases = work.base_phase + work.coordinator.phase_number + 1;
        }
        actor.next_step += 1;
        if answer == Some(Answer::Collected) {
            self.collected += 1;
        }
        let is_lost = self.scenario.lost_answers >> step.op & 1 == 1 && self.will_be_asked_again(step.op);
        let success = matches!(answer, Some(Answer::Written | Answer::Swapped { .. }));
        let is_stale = attempt != self.attempts[step.op].retries && !(self.scenario.any_success && success);
        if self.history[step.op].status != Status::Running {
            return;
        }
        let status = match answer.filter(|_| !is_lost && !is_stale) {
            // Below the majority an acknowledgement promises nothing.
            Some(Answer::Written) if plainly && !self.scenario.plain_at_quorum => Status::Unknown,
            Some(answer) => Status::Done(answer),
            None if self.is_attempted_elsewhere(step.op) => Status::Running,
            None => Status::Unknown,
        };
        let entry = &mut self.history[step.op];
        (entry.status, entry.plainly) = (status, plainly);
    }

    /// The steps that a client has not ended yet.
    fn steps_left(&self, client: usize) -> &'a [Step] {
        &self.scenario.clients[client].steps[self.actors[client].next_step..]
    }

    fn is_attempted_elsewhere(&self, op: usize) -> bool {
        (0..self.actors.len()).any(|c| self.steps_left(c).iter().any(|s| s.op == op))
    }

    /// Whether a retry or an outcome query is still to begin.
    fn will_be_asked_again(&self, op: usize) -> bool {
        let asks = |s: &Step| s.op == op && s.is_retry || self.scenario.tasks[s.op] == Task::Outcome(op);
        (0..self.actors.len()).any(|c| {
            let begun = usize::from(!self.is_idle(c));
            self.steps_left(c).iter().skip(begun).any(asks)
        })
    }

    /// Delivers a message. With `stays` it is delivered again later.
    pub(crate) fn deliver(&mut self, index: usize, reply_arrives: bool, stays: bool) {
        let message = match stays {
            true => self.messages[index].clone(),
            false => self.messages.swap_remove(index),
        };
        let Message { to, from, phase, deadline, request, .. } = message;
        let reply = self.replicas[to].handle(&request, deadline, self.now, &TIMES);
        self.log(|w| {
            let lost = if reply_arrives { "" } else { " (reply lost)" };
            let sender = from.map_or("repair".to_owned(), |c| format!("C{c}"));
            let register = w.replicas[to].register;
            format!("{sender} -> R{to} {request:?}\n          => {reply:?}{lost}\n          R{to} {register:?}")
        });
        if reply == Some(RegisterReply::Dropped) {
            self.forget_serial(to);
        }
        let (Some(reply), Some(client), true) = (reply, from, reply_arrives) else { return };
        if self.phase(client) != phase {
            return;
        }
        let actor = &mut self.actors[client];
        let Some(work) = &mut actor.work else { return };
        work.coordinator.handle(to, reply, &mut actor.clock, self.now);
        self.settle(client);
    }

    /// C3: a replica that dropped the key does not count as one at which it was serial.
    fn forget_serial(&mut self, replica: usize) {
        let dropped: ReplicaSet = [replica].into_iter().collect();
        for (entry, attempts) in self.history.iter_mut().zip(&mut self.attempts) {
            attempts.serial = attempts.serial.without(dropped);
            if entry.status == Status::Running {
                entry.on_serial_key &= self.terms.quorums.is_quorum(attempts.serial);
            }
        }
    }

    pub(crate) fn time_out(&mut self, client: usize) {
        let actor = &mut self.actors[client];
        if let Some(work) = &mut actor.work {
            work.coordinator.time_out(&mut actor.clock, self.now);
            self.log(|_| format!("C{client} times out"));
            self.settle(client);
        }
    }

    /// The coordinator crashes: nobody hears from it again, but what it sent is under way.
    pub(crate) fn give_up(&mut self, client: usize) {
        if let Some(work) = &self.actors[client].work {
            let (step, attempt) = (work.step, work.attempt);
            self.finish(client, step, attempt, None, false);
        }
    }

    pub(crate) fn restart(&mut self, replica: usize) {
        self.replicas[replica].restart();
        self.log(|_| format!("R{replica} restarts"));
    }

    pub(crate) fn purge(&mut self, replica: usize) {
        if self.replicas[replica].purge(self.now, &TIMES) {
            self.log(|_| format!("R{replica} purges its promise"));
        }
    }

    pub(crate) fn repair(&mut self, from: usize, to: usize) {
        let Some(request) = self.replicas[from].repair() else { return };
        self.log(|_| format!("R{from} repairs R{to}"));
        let deadline = self.replicas[from].wall(self.now) + TIMES.op_lifetime;
        let request = Rc::new(request);
        self.messages.push(Message { to, from: None, phase: 0, deadline, is_slow: None, request });
    }

    pub(crate) fn jump_clock(&mut self, client: usize, by_millis: i64) {
        self.actors[client].clock.jump(by_millis);
        self.log(|w| format!("C{client}'s clock jumps to {}", w.actors[client].clock.wall(w.now)));
    }

    pub(crate) fn pass_time(&mut self, by: Duration) {
        self.now = self.now + by;
    }
}
