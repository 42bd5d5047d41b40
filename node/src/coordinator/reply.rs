//! From a machine's ending to what the client is told.

use dunlin_paxos::Ending as SerialEnding;
use dunlin_protocol::message::{ClientReply, ReplyBody};
use dunlin_protocol::register::RecordView;
use dunlin_protocol::{Action, Counts, Level, Millis, Operation, Outcome, Status};
use dunlin_quorum::{ReadEnding, WriteEnding};

use crate::outbox::ReplyTo;

use super::Below;

/// Sends a result to a client.
pub(super) fn send(to: ReplyTo, outcome: Outcome, below: &mut Below<'_>) {
    send_body(to, ReplyBody::Outcome(outcome), below);
}

/// Sends any body to a client, with the common part that every reply has.
pub(super) fn send_body(to: ReplyTo, body: ReplyBody, below: &mut Below<'_>) {
    let reply = ClientReply {
        now: below.now.wall,
        quorum_micros: below.peers.quorum_micros(),
        epoch: below.placement.epoch(),
        body,
    };
    below.out.reply_client(to, &reply);
}

pub(super) fn of_write(ending: WriteEnding) -> Outcome {
    match ending {
        WriteEnding::Written { version, got } => {
            Outcome { version, counts: Counts { got, ..Counts::default() }, ..Outcome::of(Status::Ok) }
        }
        WriteEnding::Unavailable { need, alive } => unavailable(need.into(), alive.into()),
        WriteEnding::Timeout { need, got } => timeout(need.into(), got.into()),
        WriteEnding::Failed { status, need, got, indefinite } => failed(status, need.into(), got.into(), indefinite),
        WriteEnding::GoSerial { .. } => unreachable!("a write that goes on serially has not ended"),
    }
}

pub(super) fn of_read(ending: ReadEnding, operation: &Operation, wall: Millis) -> Outcome {
    match ending {
        ReadEnding::Found { record, .. } => found(record, operation, wall),
        ReadEnding::Unavailable { need, alive } => unavailable(need.into(), alive.into()),
        ReadEnding::Timeout { need, got } => timeout(need.into(), got.into()),
        ReadEnding::Failed { status, need, got } => failed(status, need.into(), got.into(), false),
        ReadEnding::GoSerial => unreachable!("a read that goes on serially has not ended"),
    }
}

/// `in_doubt`: whether the operation may take effect although the ending is no answer.
pub(super) fn of_serial(ending: SerialEnding, operation: &Operation, in_doubt: bool) -> Outcome {
    match ending {
        // The proposer judged expiry when it decided; to judge again by a later clock could deny what it decided.
        SerialEnding::Read { record, .. } => found(record, operation, Millis::NONE),
        SerialEnding::Applied { version, number, expires_at } => {
            Outcome { version, number, expires_at, ..Outcome::of(Status::Ok) }
        }
        SerialEnding::NotApplied => Outcome::of(Status::NotApplied),
        SerialEnding::ConditionFailed { current } => {
            Outcome { version: current, ..Outcome::of(Status::PreconditionFailed) }
        }
        SerialEnding::NotANumber => Outcome::of(Status::NotANumber),
        SerialEnding::OutcomeApplied { version } => Outcome { version, ..Outcome::of(Status::Ok) },
        SerialEnding::Unknown => Outcome::of(Status::OutcomeUnknown),
        SerialEnding::Reused => Outcome::of(Status::OpIdReused),
        SerialEnding::TimedOut { need, got, sent } if !sent && operation.action.is_write() => Outcome {
            counts: counts(need, got, 0),
            ..Outcome::because(
                Status::Unavailable,
                format!("{got} of {need} replicas answered in time: nothing was changed"),
            )
        },
        SerialEnding::TimedOut { need, got, .. } => timeout(need, got),
        SerialEnding::Unavailable { need, alive } if in_doubt => timeout(need, alive),
        SerialEnding::Unavailable { need, alive } => unavailable(need, alive),
        SerialEnding::Clock(error) => undecided(Status::NotReady, error.to_string(), in_doubt),
        SerialEnding::ClockSkew => undecided(Status::ClockSkew, String::new(), in_doubt),
        SerialEnding::Refused { status, need, got, sent } => failed(status, need, got, sent || in_doubt),
    }
}

/// The attempt could not go on; what earlier ones did is another matter.
fn undecided(status: Status, message: String, in_doubt: bool) -> Outcome {
    Outcome::because(if in_doubt { Status::Timeout } else { status }, message)
}

fn found(record: RecordView, operation: &Operation, wall: Millis) -> Outcome {
    let head = record.head;
    if !head.is_live(wall) {
        return Outcome { version: head.stamp, ..Outcome::of(Status::NotFound) };
    }
    let wants_value = matches!(operation.action, Action::Read { value: true });
    Outcome {
        version: head.stamp,
        expires_at: head.expires_at,
        content: record.content.filter(|_| wants_value),
        ..Outcome::of(Status::Ok)
    }
}

fn unavailable(need: usize, alive: usize) -> Outcome {
    let message = format!("{need} replicas are needed and {alive} are alive: nothing was sent");
    Outcome { counts: counts(need, 0, alive), ..Outcome::because(Status::Unavailable, message) }
}

fn timeout(need: usize, got: usize) -> Outcome {
    let message = format!("{got} of {need} replicas confirmed in time");
    Outcome { counts: counts(need, got, 0), ..Outcome::because(Status::Timeout, message) }
}

/// Replicas refused. When some of them may have taken the write all the same, only an indefinite status is honest.
fn failed(status: Status, need: usize, got: usize, indefinite: bool) -> Outcome {
    let message = format!("{got} of {need} replicas confirmed, others refused: {}", status.sentence());
    let status = if indefinite { Status::Timeout } else { status };
    Outcome { counts: counts(need, got, 0), ..Outcome::because(status, message) }
}

fn counts(need: usize, got: usize, alive: usize) -> Counts {
    let of = |n| u8::try_from(n).unwrap_or(u8::MAX);
    Counts { need: of(need), got: of(got), alive: of(alive) }
}

/// The level that a scan reads each key at.
pub(super) fn scan_level(level: Level) -> Level {
    if level == Level::Serial { Level::Quorum } else { level }
}
