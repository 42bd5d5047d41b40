//! What is drawn before a schedule begins: replicas, clients and what they ask, clocks, and how much goes wrong.

use super::coordinator::Task;
use super::rng::Rng;

/// What a schedule is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Serial operations only.
    Serial,
    /// Serial operations and one plain writer.
    OneWriter,
    /// Serial operations and two plain writers, whose clocks disagree.
    TwoWriters,
    /// Plain writes and quorum reads only, few of them.
    Plain,
    /// Retries and outcome queries, which overlap with what they ask for.
    Retry,
    /// Deletes and collectors; time passes.
    Collect,
    /// All of it at random, with purges and weak plain writes.
    Mix,
}

/// One step of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    /// The operation's number.
    pub(crate) op: usize,
    /// Another attempt at an operation of another client's.
    pub(crate) is_retry: bool,
}

/// A client and its coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) steps: Vec<Step>,
    pub(crate) clock_offset: i64,
    pub(crate) merges: bool,
    /// How long its attempts may draw ballots.
    pub(crate) window_millis: u64,
}

/// All that is fixed when a schedule begins.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) replica_offsets: Vec<i64>,
    pub(crate) clients: Vec<Client>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) lineage_limit: usize,
    pub(crate) plain_at_quorum: bool,
    pub(crate) collects: bool,
    pub(crate) repairs: bool,
    pub(crate) purges: bool,
    /// Retries and queries run beside earlier attempts; else they wait for the end of those.
    pub(crate) overlap: bool,
    /// A retry may arrive before the first attempt does.
    pub(crate) may_come_late: bool,
    /// A query may follow an answer.
    pub(crate) query_answered: bool,
    /// The client takes the success of any attempt; else only the answer of its last one.
    pub(crate) any_success: bool,
    /// Operations whose answer is lost on the way to the client, as bits.
    pub(crate) lost_answers: u64,
    /// Plain stamps are in real-time order.
    pub(crate) one_writer: bool,
}

/// The most operations that may change the key.
const MOST_OPS: usize = 10;

impl Scenario {
    pub(crate) fn draw(rng: &mut Rng, mode: Mode) -> Self {
        let is = |m: Mode| mode == m;
        let mix = is(Mode::Mix);
        let asks_again = is(Mode::Retry) || is(Mode::Collect) && rng.chance(50) || mix;
        let collects = is(Mode::Collect) || mix && rng.chance(30);
        let purges = collects && rng.chance(50) || mix && rng.chance(40);
        let small = is(Mode::Plain) || rng.chance(40);
        let mut draft =
            Draft { tasks: Vec::new(), clients: Vec::new(), next_value: 1, deletes: if collects { 45 } else { 8 } };
        let mut writes: Vec<usize> = Vec::new();

        let serial_clients = if is(Mode::Plain) { 0 } else { 1 + rng.below(3) };
        for _ in 0..serial_clients {
            draft.add_client(rng, 30, true);
            for _ in 0..if small { 1 } else { 1 + rng.below(3) } {
                draft.add(|d, rng| d.serial_task(rng), rng);
            }
        }
        if collects && rng.chance(70) {
            draft.tasks[0] = Task::Swap(0);
        }
        let writers = match mode {
            Mode::Serial => 0,
            Mode::OneWriter => 1,
            Mode::TwoWriters | Mode::Plain => 2,
            Mode::Retry | Mode::Collect | Mode::Mix => rng.below(3),
        };
        for _ in 0..writers {
            let merges = rng.chance(40);
            draft.add_client(rng, 60, merges);
            for _ in 0..if small { 1 } else { 1 + rng.below(3) } {
                draft.add(|d, rng| Task::Write(d.value(rng)), rng);
            }
        }
        writes.extend((0..draft.tasks.len()).filter(|&i| draft.tasks[i].is_write()));
        let readers = if is(Mode::Plain) { 3 } else { 1 + usize::from(!small && rng.chance(50)) };
        for _ in 0..readers {
            draft.add_client(rng, 30, true);
            for _ in 0..if small { 1 } else { 2 } + rng.below(2) {
                draft.add(|_, _| Task::Read, rng);
            }
        }
        if asks_again && !writes.is_empty() {
            draft.ask_again(rng, &writes, is(Mode::Retry));
        }
        if collects {
            for _ in 0..1 + rng.below(2) {
                draft.add_client(rng, 30, true);
                draft.add(|_, _| Task::Collect, rng);
                draft.add(|_, _| Task::Collect, rng);
            }
        }
        // The last client reads at the end.
        draft.add_client(rng, 30, true);
        draft.add(|_, _| Task::Read, rng);
        draft.add(|_, _| Task::Read, rng);

        let replicas = if rng.chance(12) { 5 } else { 3 };
        Self {
            replica_offsets: (0..replicas).map(|_| rng.below(60) as i64 - 30).collect(),
            clients: draft.clients,
            tasks: draft.tasks,
            lineage_limit: rng.pick(&[1, 1, 1, 2, 2, 4]),
            plain_at_quorum: !(mix && rng.chance(15)),
            collects,
            repairs: rng.chance(50),
            purges,
            overlap: rng.chance(70),
            may_come_late: rng.chance(25),
            query_answered: rng.chance(25),
            any_success: rng.chance(30),
            lost_answers: if rng.chance(50) { rng.draw() & rng.draw() } else { 0 },
            one_writer: writers <= 1,
        }
    }
}

/// A scenario under way. What is added goes to the client added last.
struct Draft {
    tasks: Vec<Task>,
    clients: Vec<Client>,
    next_value: u32,
    deletes: u64,
}

impl Draft {
    fn add_client(&mut self, rng: &mut Rng, skew_millis: usize, merges: bool) {
        self.clients.push(Client {
            steps: Vec::new(),
            clock_offset: rng.below(2 * skew_millis) as i64 - skew_millis as i64,
            merges,
            window_millis: rng.pick(&[4, 10, 30, 100, 1000]),
        });
    }

    fn add(&mut self, task: impl FnOnce(&mut Self, &mut Rng) -> Task, rng: &mut Rng) {
        let task = task(self, rng);
        if self.tasks.len() < MOST_OPS || !task.is_write() {
            let op = self.tasks.len();
            self.tasks.push(task);
            self.step(Step { op, is_retry: false });
        }
    }

    fn step(&mut self, step: Step) {
        self.clients.last_mut().expect("a client was added").steps.push(step);
    }

    /// A value that nothing else writes, or none.
    fn value(&mut self, rng: &mut Rng) -> u32 {
        if rng.chance(self.deletes) {
            return 0;
        }
        self.next_value += 1;
        self.next_value - 1
    }

    fn serial_task(&mut self, rng: &mut Rng) -> Task {
        let expect = rng.below(self.next_value as usize + 1) as u32;
        let new = self.value(rng);
        match rng.below(10) {
            0 | 1 => Task::Read,
            2 => Task::Cas { expect: 0, new },
            3 | 4 => Task::Cas { expect, new },
            _ => Task::Swap(new),
        }
    }

    /// Retries of one write, and outcome queries, mostly of the same.
    fn ask_again(&mut self, rng: &mut Rng, writes: &[usize], surely: bool) {
        let op = rng.pick(writes);
        if surely || rng.chance(60) {
            for _ in 0..1 + usize::from(rng.chance(25)) {
                self.add_client(rng, 30, true);
                self.step(Step { op, is_retry: true });
            }
        }
        if rng.chance(50) {
            for _ in 0..1 + usize::from(rng.chance(35)) {
                let of = if rng.chance(65) { op } else { rng.pick(writes) };
                self.add_client(rng, 30, true);
                self.add(|_, _| Task::Outcome(of), rng);
            }
        }
    }
}
