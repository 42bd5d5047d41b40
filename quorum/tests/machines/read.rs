use dunlin_protocol::register::{RegisterReply, RegisterRequest, Want};
use dunlin_protocol::{
    Ancestor, Answer, Ballot, Content, Level, Millis, Quorums, Record, RecordHead, ReplicaSet, Stamp, Status, Tick,
};
use dunlin_quorum::{Read, ReadEffect, ReadEnding};

use crate::cluster::{Cluster, DEADLINE, SPECULATE_AFTER, of, record, stamp};

/// What a replica does with requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Does {
    Serve,
    /// Serves so many requests and then loses the connection.
    ServeThenLose(usize),
    /// Serves so many requests and then says nothing.
    ServeThenHang(usize),
    Refuse(Status),
    NotSent,
}

use Does::{NotSent, Refuse, Serve, ServeThenHang, ServeThenLose};

/// A read under way against a cluster; the network is a queue.
struct Run {
    cluster: Cluster,
    does: Vec<Does>,
    read: Read,
    now: Tick,
    ending: Option<ReadEnding>,
    /// Replica and kind of request, in order.
    sent: Vec<(usize, &'static str)>,
    /// Happens at the replicas once, before the request with this number is carried out.
    meanwhile: Option<(usize, Vec<(usize, RegisterRequest)>)>,
}

impl Run {
    fn new(cluster: Cluster, level: &str, want_value: bool) -> Self {
        let replicas = cluster.registers.len();
        let level: Level = level.parse().expect(level);
        let (quorums, alive) = (Quorums::majority(replicas), ReplicaSet::first(replicas));
        let order = (0..replicas).collect();
        let read = Read::new(quorums, replicas, alive, order, level, want_value, SPECULATE_AFTER, DEADLINE);
        let does = vec![Serve; replicas];
        Self { cluster, does, read, now: Tick(0), ending: None, sent: Vec::new(), meanwhile: None }
    }

    fn does(mut self, does: &[(usize, Does)]) -> Self {
        does.iter().for_each(|(replica, does)| self.does[*replica] = *does);
        self
    }

    fn meanwhile(mut self, before: usize, requests: &[(&[usize], RegisterRequest)]) -> Self {
        let each = requests.iter().flat_map(|(to, request)| to.iter().map(|r| (*r, request.clone()))).collect();
        self.meanwhile = Some((before, each));
        self
    }

    /// Runs it to its end; timeouts come when nothing else is left to do.
    fn run(mut self) -> Self {
        self.read.start(self.now);
        loop {
            while let Some(effect) = self.read.poll_effect() {
                match effect {
                    ReadEffect::Send { replica, request } => self.send(replica, &request),
                    ReadEffect::Finish(ending) => assert_eq!(self.ending.replace(ending), None, "one ending"),
                }
            }
            match self.read.poll_timeout() {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.read.handle_timeout(self.now);
                }
                None => break,
            }
        }
        assert!(self.read.is_done());
        self
    }

    fn send(&mut self, replica: usize, request: &RegisterRequest) {
        if let Some((_, requests)) = self.meanwhile.take_if(|(before, _)| *before == self.sent.len()) {
            requests.iter().for_each(|(to, request)| drop(self.cluster.handle(*to, request)));
        }
        self.sent.push((replica, kind(request)));
        let answer = match &mut self.does[replica] {
            Serve => Answer::Reply(self.cluster.handle(replica, request)),
            ServeThenLose(0) => Answer::Lost,
            ServeThenHang(0) => return,
            ServeThenLose(left) | ServeThenHang(left) => {
                *left -= 1;
                Answer::Reply(self.cluster.handle(replica, request))
            }
            Refuse(status) => Answer::Refused { status: *status, seen: Stamp::ZERO },
            NotSent => Answer::NotSent,
        };
        self.read.handle(self.now, replica, answer.clone());
        // Repeated answers change nothing, unless they are views, which are always good.
        if !matches!(answer, Answer::Reply(RegisterReply::View(_))) {
            self.read.handle(self.now, replica, answer);
        }
    }

    #[track_caller]
    fn check(self, sent: &[(usize, &'static str)], expected: ReadEnding) -> Self {
        let run = self.run();
        assert_eq!(run.ending, Some(expected));
        assert_eq!(run.sent, sent);
        run
    }

    /// Like [`check`](Self::check) for a value that is found.
    #[track_caller]
    fn check_found(self, sent: &[(usize, &'static str)], found: Stamp, ballot: Ballot) -> Self {
        let run = self.run();
        assert_eq!(run.sent, sent);
        let Some(ReadEnding::Found { record, ballot: at }) = &run.ending else {
            panic!("{:?}", run.ending);
        };
        assert_eq!((record.head.stamp, *at), (found, ballot));
        assert_eq!(record.content, Some(run.cluster.record(found).content));
        run
    }
}

fn kind(request: &RegisterRequest) -> &'static str {
    match request {
        RegisterRequest::Read { want: Want::HEAD } => "head",
        RegisterRequest::Read { want: Want::VALUE } => "value",
        RegisterRequest::Read { want: Want::ALL } => "all",
        RegisterRequest::Write { .. } => "write",
        RegisterRequest::Install { .. } => "install",
        other => panic!("no request of a read: {other:?}"),
    }
}

fn write(n: u64) -> RegisterRequest {
    RegisterRequest::Write { record: record(stamp(n)) }
}

fn serial_record(n: u64) -> Record {
    let lineage = vec![Ancestor { op_id: stamp(1), stamp: stamp(1) }];
    Record { lineage, ..record(stamp(n)) }
}

fn prepare(ballot: u64) -> RegisterRequest {
    RegisterRequest::Prepare { ballot: stamp(ballot), want: Want::HEAD }
}

fn accept(ballot: u64, n: u64) -> RegisterRequest {
    RegisterRequest::Accept { ballot: stamp(ballot), record: serial_record(n), next: Ballot::ZERO }
}

fn commit(ballot: u64, n: u64) -> RegisterRequest {
    RegisterRequest::Commit { ballot: stamp(ballot), stamp: stamp(n), record: Some(serial_record(n)) }
}

const ALL: &[usize] = &[0, 1, 2];

#[test]
fn equal_replicas_answer_at_once() {
    let cluster = || Cluster::after(3, &[(ALL, write(5))]);
    Run::new(cluster(), "one", true).check_found(&[(0, "value")], stamp(5), Ballot::ZERO);
    Run::new(cluster(), "quorum", true).check_found(&[(0, "value"), (1, "head")], stamp(5), Ballot::ZERO);
    Run::new(cluster(), "all", true).check_found(&[(0, "value"), (1, "head"), (2, "head")], stamp(5), Ballot::ZERO);
    let run = Run::new(Cluster::new(3), "quorum", true).run();
    assert_eq!(run.sent, [(0, "value"), (1, "head")]);
    assert!(matches!(run.ending, Some(ReadEnding::Found { record, .. }) if record.head == RecordHead::ABSENT));
}

#[test]
fn without_the_value_nobody_is_asked_for_it() {
    let run = Run::new(Cluster::after(3, &[(ALL, write(5))]), "quorum", false).run();
    assert_eq!(run.sent, [(0, "head"), (1, "head")]);
    assert!(matches!(run.ending, Some(ReadEnding::Found { record, .. }) if record.content.is_none()));
}

#[test]
fn replicas_that_differ_are_brought_together_before_the_answer() {
    let run = Run::new(Cluster::after(3, &[(ALL, write(5)), (&[0], write(6))]), "quorum", true).check_found(
        &[(0, "value"), (1, "head"), (0, "write"), (1, "write"), (2, "write")],
        stamp(6),
        Ballot::ZERO,
    );
    assert!((0..3).all(|r| run.cluster.registers[r].head().stamp == stamp(6)));
    // The newer value has to be fetched first where the nearest holds the older one.
    Run::new(Cluster::after(3, &[(ALL, write(5)), (&[1], write(6))]), "quorum", true).check_found(
        &[(0, "value"), (1, "head"), (1, "value"), (0, "write"), (1, "write"), (2, "write")],
        stamp(6),
        Ballot::ZERO,
    );
}

#[test]
fn a_write_back_that_meets_something_newer_begins_anew_and_then_goes_serial() {
    // 7 reaches a quorum before the write-back of 6.
    let history: &[(&[usize], RegisterRequest)] = &[(ALL, write(5)), (&[0], write(6))];
    Run::new(Cluster::after(3, history), "quorum", true).meanwhile(2, &[(&[1, 2], write(7))]).check_found(
        &[
            (0, "value"),
            (1, "head"),
            (0, "write"),
            (1, "write"),
            (2, "write"),
            (0, "value"),
            (1, "value"),
            (0, "write"),
            (1, "write"),
            (2, "write"),
        ],
        stamp(7),
        Ballot::ZERO,
    );
    // The key turns serial in between; nobody has proposed anything yet.
    Run::new(Cluster::after(3, history), "quorum", true).meanwhile(2, &[(&[1, 2], prepare(9))]).check(
        &[(0, "value"), (1, "head"), (0, "write"), (1, "write"), (2, "write"), (0, "value"), (1, "value")],
        ReadEnding::GoSerial,
    );
    // Lost replicas are no reason to ask a proposer.
    Run::new(Cluster::after(3, history), "quorum", true)
        .does(&[(1, ServeThenLose(1)), (2, Refuse(Status::DiskFull))])
        .check(
            &[(0, "value"), (1, "head"), (0, "write"), (1, "write"), (2, "write")],
            ReadEnding::Failed { status: Status::DiskFull, need: 2, got: 1 },
        );
}

#[test]
fn serial_keys() {
    let chosen: &[(&[usize], RegisterRequest)] = &[(ALL, write(5)), (ALL, prepare(7)), (&[0, 1], accept(7, 8))];
    // Accepted by a quorum: chosen, though nobody committed it.
    Run::new(Cluster::after(3, chosen), "quorum", true).check_found(&[(0, "value"), (1, "head")], stamp(8), stamp(7));
    // Seen at one of two only, twice: a proposer must tell.
    Run::new(Cluster::after(3, chosen), "serial", true).does(&[(0, NotSent)]).check(
        &[(0, "value"), (1, "head"), (2, "value"), (0, "value"), (1, "head"), (2, "value")],
        ReadEnding::GoSerial,
    );
}

#[test]
fn below_the_majority_a_pending_is_never_an_answer() {
    let pending: &[(&[usize], RegisterRequest)] = &[(ALL, write(5)), (ALL, prepare(7)), (&[0], accept(7, 8))];
    Run::new(Cluster::after(3, pending), "one", true).check_found(&[(0, "value")], stamp(5), Ballot::ZERO);
    let five = |committed: &[usize]| {
        let all: &[usize] = &[0, 1, 2, 3, 4];
        Cluster::after(5, &[(all, write(5)), (all, prepare(7)), (&[0, 1], accept(7, 8)), (committed, commit(7, 8))])
    };
    Run::new(five(&[]), "two", true).check_found(&[(0, "value"), (1, "head")], stamp(5), Ballot::ZERO);
    Run::new(five(&[0]), "two", true).check_found(
        &[(0, "value"), (1, "head"), (0, "all"), (1, "install")],
        stamp(8),
        stamp(7),
    );
}

#[test]
fn below_the_majority_the_newest_is_the_answer_and_repaired_afterwards() {
    let all: &[usize] = &[0, 1, 2, 3, 4];
    let cluster = || Cluster::after(5, &[(all, write(5)), (&[1], write(6))]);
    let sent = [(0, "value"), (1, "head"), (1, "value"), (0, "install")];
    let run = Run::new(cluster(), "two", true).check_found(&sent, stamp(6), Ballot::ZERO);
    assert_eq!(run.cluster.registers[0].head().stamp, stamp(6));
    assert_eq!(run.cluster.registers[2].head().stamp, stamp(5));
    // The holder of the newest is gone before its value is: what is left will do, from another replica.
    Run::new(cluster(), "two", true).does(&[(1, ServeThenLose(1))]).check_found(
        &[(0, "value"), (1, "head"), (1, "value"), (2, "value")],
        stamp(5),
        Ballot::ZERO,
    );
}

#[test]
fn a_stale_replica_of_a_serial_key_is_repaired_after_the_answer() {
    let history: &[(&[usize], RegisterRequest)] = &[(ALL, write(5)), (&[1, 2], prepare(7)), (&[1, 2], commit(7, 8))];
    let run = Run::new(Cluster::after(3, history), "quorum", true).check_found(
        &[(0, "value"), (1, "head"), (1, "value"), (1, "all"), (0, "install")],
        stamp(8),
        stamp(7),
    );
    assert_eq!((run.cluster.registers[0].ballot, run.cluster.registers[0].head().stamp), (stamp(7), stamp(8)));
    // The repaired replica holds the lineage too.
    let stored = run.cluster.view(0, Want::ALL).record.to_record();
    assert_eq!(stored, Some(serial_record(8)));
}

#[test]
fn failures_are_replaced_and_slow_ones_hedged() {
    let cluster = || Cluster::after(3, &[(ALL, write(5))]);
    Run::new(cluster(), "one", true).does(&[(0, NotSent), (1, Refuse(Status::Suspect))]).check_found(
        &[(0, "value"), (1, "value"), (2, "value")],
        stamp(5),
        Ballot::ZERO,
    );
    Run::new(cluster(), "quorum", true).does(&[(1, NotSent)]).check_found(
        &[(0, "value"), (1, "head"), (2, "head")],
        stamp(5),
        Ballot::ZERO,
    );
    // The one asked for the value hangs: the extra one is asked for it too.
    Run::new(cluster(), "quorum", true).does(&[(0, ServeThenHang(0))]).check_found(
        &[(0, "value"), (1, "head"), (2, "value")],
        stamp(5),
        Ballot::ZERO,
    );
    Run::new(cluster(), "quorum", true).does(&[(1, ServeThenHang(0))]).check_found(
        &[(0, "value"), (1, "head"), (2, "head")],
        stamp(5),
        Ballot::ZERO,
    );
    Run::new(cluster(), "quorum", true)
        .does(&[(0, ServeThenHang(0)), (1, ServeThenHang(0))])
        .check(&[(0, "value"), (1, "head"), (2, "value")], ReadEnding::Timeout { need: 2, got: 1 });
    // As long as enough are well, others may hang one after the other.
    let hang = [(0, ServeThenHang(0)), (1, ServeThenHang(0))];
    Run::new(cluster(), "one", true).does(&hang).check_found(
        &[(0, "value"), (1, "value"), (2, "value")],
        stamp(5),
        Ballot::ZERO,
    );
    let five: &[usize] = &[0, 1, 2, 3, 4];
    Run::new(Cluster::after(5, &[(five, write(5))]), "quorum", true).does(&hang).check_found(
        &[(0, "value"), (1, "head"), (2, "head"), (3, "value"), (4, "value")],
        stamp(5),
        Ballot::ZERO,
    );
    Run::new(cluster(), "quorum", true).does(&[(0, Refuse(Status::Suspect)), (1, Refuse(Status::StaleEpoch))]).check(
        &[(0, "value"), (1, "head"), (2, "value")],
        ReadEnding::Failed { status: Status::StaleEpoch, need: 2, got: 0 },
    );
}

#[test]
fn fetching_moves_to_another_holder() {
    let all: &[usize] = &[0, 1, 2, 3, 4];
    let cluster = || Cluster::after(5, &[(all, write(5)), (&[1, 2, 3, 4], write(6))]);
    let asked = [(0, "value"), (1, "head"), (2, "head"), (1, "value"), (2, "value")];
    let write_back = [(0, "write"), (1, "write"), (2, "write"), (3, "write"), (4, "write")];
    let sent: Vec<_> = asked.into_iter().chain(write_back).collect();
    for does in [ServeThenLose(1), ServeThenHang(1)] {
        Run::new(cluster(), "quorum", true).does(&[(1, does)]).check_found(&sent, stamp(6), Ballot::ZERO);
    }
}

#[test]
fn too_few_alive() {
    let mut read =
        Read::new(Quorums::majority(3), 3, of(&[2]), vec![0, 1, 2], Level::Quorum, true, SPECULATE_AFTER, DEADLINE);
    read.start(Tick(0));
    assert_eq!(read.poll_effect(), Some(ReadEffect::Finish(ReadEnding::Unavailable { need: 2, alive: 1 })));
    assert!(read.is_done() && read.poll_timeout().is_none());
    read.handle(Tick(0), 2, Answer::Lost);
    assert_eq!(read.poll_effect(), None);
}

#[test]
fn expired_records_and_tombstones_are_found_as_they_are() {
    let expired = Record { expires_at: Millis(1), ..record(stamp(5)) };
    let deleted = Record { content: Content::Tombstone, ..record(stamp(6)) };
    for expected in [expired, deleted] {
        let history = [(ALL, RegisterRequest::Write { record: expected.clone() })];
        let run = Run::new(Cluster::after(3, &history), "quorum", true).run();
        let Some(ReadEnding::Found { record, .. }) = run.ending else { panic!("{:?}", run.ending) };
        assert_eq!((record.head, record.content), (expected.head(), Some(expected.content)));
    }
}
