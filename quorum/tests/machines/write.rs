use dunlin_protocol::register::{RegisterReply, RegisterRequest};
use dunlin_protocol::{Answer, Level, Quorums, ReplicaSet, Stamp, Status, Tick};
use dunlin_quorum::{Write, WriteEffect, WriteEnding};

use crate::cluster::{DEADLINE, PATIENCE, of, record, stamp};

/// What a replica does.
#[derive(Clone, Copy, Debug)]
enum Does {
    Confirm,
    ConfirmHigher,
    Serial,
    Refuse(Status),
    NotSent,
    Lose,
    Babble,
}

use Does::{Babble, Confirm, ConfirmHigher, Lose, NotSent, Refuse, Serial};

impl Does {
    fn answer(self) -> Answer {
        match self {
            Confirm => Answer::Reply(RegisterReply::Written { stamp: stamp(5) }),
            ConfirmHigher => Answer::Reply(RegisterReply::Written { stamp: stamp(6) }),
            Serial => Answer::Reply(RegisterReply::Refused { seen: stamp(9) }),
            Refuse(status) => Answer::Refused { status, seen: Stamp::ZERO },
            NotSent => Answer::NotSent,
            Lose => Answer::Lost,
            Babble => Answer::Reply(RegisterReply::Accepted),
        }
    }
}

fn write(quorums: Quorums, replicas: usize, alive: ReplicaSet, level: &str, resend: bool) -> Write {
    let level: Level = level.parse().expect(level);
    let mut write =
        Write::new(quorums, replicas, alive, level, record(stamp(5)), resend, DEADLINE).with_patience(PATIENCE);
    write.start(Tick(0));
    write
}

fn drain(write: &mut Write) -> (Vec<usize>, Option<WriteEnding>) {
    let (mut sent, mut ending) = (Vec::new(), None);
    while let Some(effect) = write.poll_effect() {
        match effect {
            WriteEffect::Send { replica, request } => {
                assert_eq!(request, RegisterRequest::Write { record: record(stamp(5)) });
                sent.push(replica);
            }
            WriteEffect::Finish(one) => assert_eq!(ending.replace(one), None, "one ending"),
        }
    }
    (sent, ending)
}

/// A write whose replicas answer in this order, each answer twice; the timeout comes when all have. `after` is the number of answers it took.
#[track_caller]
fn check(replicas: usize, level: &str, answers: &[(usize, Does)], after: usize, expected: WriteEnding) {
    check_attempt(false, replicas, level, answers, after, expected);
}

#[track_caller]
fn check_attempt(
    resend: bool,
    replicas: usize,
    level: &str,
    answers: &[(usize, Does)],
    after: usize,
    expected: WriteEnding,
) {
    let mut write = write(Quorums::majority(replicas), replicas, ReplicaSet::first(replicas), level, resend);
    assert_eq!(drain(&mut write), ((0..replicas).collect(), None));
    let mut ended = None;
    for (i, (replica, does)) in answers.iter().enumerate() {
        assert!([Some(DEADLINE), Some(Tick(1) + PATIENCE)].contains(&write.poll_timeout()));
        write.handle(Tick(1), *replica, does.answer());
        write.handle(Tick(1), *replica, Confirm.answer());
        if let (_, Some(ending)) = drain(&mut write) {
            assert!(ended.replace((i + 1, ending)).is_none(), "one ending");
        }
    }
    write.handle_timeout(Tick(1));
    assert_eq!(drain(&mut write), (vec![], None), "the deadline has not come");
    write.handle_timeout(DEADLINE);
    if let (_, Some(ending)) = drain(&mut write) {
        assert!(ended.replace((answers.len() + 1, ending)).is_none(), "one ending");
    }
    assert_eq!(ended, Some((after, expected)));
    assert!(write.is_done() && write.poll_timeout().is_none());
    write.handle(DEADLINE, 0, Confirm.answer());
    assert_eq!(drain(&mut write), (vec![], None));
}

fn written(got: u8) -> WriteEnding {
    WriteEnding::Written { version: stamp(5), got }
}

fn failed(status: Status, need: u8, got: u8, indefinite: bool) -> WriteEnding {
    WriteEnding::Failed { status, need, got, indefinite }
}

#[test]
fn confirmed_as_often_as_the_level_needs() {
    check(3, "one", &[(2, Confirm), (0, Confirm), (1, Confirm)], 1, written(1));
    check(3, "quorum", &[(2, Confirm), (1, Refuse(Status::DiskFull)), (0, ConfirmHigher)], 3, written(2));
    check(3, "all", &[(2, Confirm), (1, Confirm), (0, Confirm)], 3, written(3));
    check(5, "4", &[(2, Confirm), (1, Confirm), (0, Lose), (4, Confirm), (3, Confirm)], 5, written(4));
    check(5, "two", &[(2, Lose), (1, Confirm), (0, Confirm)], 3, written(2));
}

#[test]
fn serial_keys_go_on_serially() {
    // Below the majority at the first refusal, above it when the level is out of reach.
    let go = |tried| WriteEnding::GoSerial { tried };
    check(3, "one", &[(2, Serial), (1, Confirm)], 2, go(true));
    check(3, "one", &[(1, Confirm), (2, Serial)], 1, written(1));
    check(5, "two", &[(1, Confirm), (2, Serial), (3, Confirm)], 2, go(true));
    check(3, "quorum", &[(1, Serial), (2, Confirm), (0, Confirm)], 3, written(2));
    check(3, "quorum", &[(1, Serial), (2, Confirm), (0, Serial)], 3, go(true));
    check(3, "quorum", &[(1, Refuse(Status::DiskFull)), (2, Serial)], 3, go(true));
    check(3, "all", &[(1, Confirm), (2, Serial)], 2, go(true));
    // Who has not answered by then is waited for a while: what nobody stored was not tried.
    check(3, "quorum", &[(1, Serial), (2, Serial), (0, Serial)], 3, go(false));
    check(3, "quorum", &[(1, Serial), (2, Serial), (0, ConfirmHigher)], 3, go(false));
    check(3, "quorum", &[(1, Serial), (2, Serial), (0, Lose)], 3, go(true));
    check(3, "one", &[(2, Serial), (1, NotSent), (0, Refuse(Status::DiskFull))], 3, go(false));
    check(3, "one", &[(2, Serial), (1, Serial)], 3, go(true));
    check(3, "quorum", &[(1, Lose), (2, NotSent), (0, Confirm)], 2, failed(Status::Unavailable, 2, 0, true));
}

#[test]
fn what_failed_is_definite_only_if_nobody_can_have_stored_it() {
    let full = Refuse(Status::DiskFull);
    check(3, "quorum", &[(0, full), (1, full), (2, full)], 3, failed(Status::DiskFull, 2, 0, false));
    check(3, "quorum", &[(0, full), (1, full), (2, Confirm)], 3, failed(Status::DiskFull, 2, 1, true));
    check(3, "quorum", &[(0, full), (1, full)], 3, failed(Status::DiskFull, 2, 0, true));
    check(3, "quorum", &[(0, full), (1, Lose), (2, full)], 2, failed(Status::DiskFull, 2, 0, true));
    check(3, "quorum", &[(0, full), (1, NotSent), (2, full)], 3, failed(Status::DiskFull, 2, 0, false));
    check(3, "quorum", &[(0, NotSent), (1, NotSent), (2, NotSent)], 3, failed(Status::Unavailable, 2, 0, false));
    check(3, "quorum", &[(0, Confirm), (1, full), (2, full)], 3, failed(Status::DiskFull, 2, 1, true));
    check(3, "quorum", &[(0, Babble), (1, NotSent)], 2, failed(Status::BadFrame, 2, 0, true));
    // A stale epoch's write is stored, and asking again mends it.
    let stale = Refuse(Status::StaleEpoch);
    check(3, "quorum", &[(0, full), (1, stale)], 2, failed(Status::StaleEpoch, 2, 0, true));
    check_attempt(true, 3, "quorum", &[(0, full), (1, full)], 2, failed(Status::DiskFull, 2, 0, true));
}

#[test]
fn too_few_answers_in_time() {
    check(3, "quorum", &[], 1, WriteEnding::Timeout { need: 2, got: 0 });
    check(3, "quorum", &[(1, Confirm)], 2, WriteEnding::Timeout { need: 2, got: 1 });
    check(3, "quorum", &[(1, Serial), (0, Confirm)], 3, WriteEnding::Timeout { need: 2, got: 1 });
}

#[test]
fn too_few_alive() {
    let mut unsent = write(Quorums::majority(3), 3, of(&[1]), "quorum", false);
    assert_eq!(drain(&mut unsent), (vec![], Some(WriteEnding::Unavailable { need: 2, alive: 1 })));
    assert!(unsent.is_done() && unsent.poll_timeout().is_none());
    let mut too_high = write(Quorums::majority(3), 3, of(&[0, 1, 2]), "4", false);
    assert_eq!(drain(&mut too_high), (vec![], Some(WriteEnding::Unavailable { need: 4, alive: 3 })));
    // The dead are sent to as well, after the living.
    let mut sent = write(Quorums::majority(3), 3, of(&[1, 2]), "quorum", false);
    assert_eq!(drain(&mut sent), (vec![1, 2, 0], None));
}

#[test]
fn joint_quorums_take_a_majority_of_both() {
    let joint = Quorums::joint(of(&[0, 1, 2]), of(&[2, 3, 4]));
    let mut write = write(joint, 3, of(&[0, 1, 2, 3, 4]), "quorum", false);
    assert_eq!(drain(&mut write).0.len(), 5);
    for replica in [0, 1, 2] {
        write.handle(Tick(1), replica, Confirm.answer());
        assert_eq!(drain(&mut write), (vec![], None));
    }
    write.handle(Tick(1), 4, Confirm.answer());
    assert_eq!(drain(&mut write), (vec![], Some(written(4))));
    assert!(!write.is_done(), "one replica has not answered");
}
