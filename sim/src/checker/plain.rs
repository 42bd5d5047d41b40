//! The plain path's promises (PROTOCOL.md 1.11, C2), checked by stamps alone: cheaper than a search, and they name the pair that breaks them.

use dunlin_protocol::Stamp;

use crate::history::{Call, Event, Promise, Reply};

use super::violation::{Claim, Violation};

/// Checks every promise for one key's events.
pub(crate) fn check(key: u32, events: &[Event]) -> Result<(), Box<Violation>> {
    one_version_names_one_value(key, events)?;
    what_is_read_was_written(key, events)?;
    acknowledged_writes_are_seen(key, events)?;
    reads_do_not_go_back(key, events)
}

fn broken(claim: Claim, key: u32, events: &[&Event]) -> Result<(), Box<Violation>> {
    Err(Box::new(Violation { key, claim, window: events.iter().map(|e| **e).collect() }))
}

fn one_version_names_one_value(key: u32, events: &[Event]) -> Result<(), Box<Violation>> {
    let mut named: Vec<(Stamp, Option<i64>, &Event)> =
        events.iter().filter_map(|e| e.naming().map(|(version, value)| (version, value, e))).collect();
    named.sort_by_key(|(version, _, event)| (*version, event.invoked_at));
    let differs = named.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1);
    differs.map_or(Ok(()), |pair| broken(Claim::OneVersionOneValue, key, &[pair[0].2, pair[1].2]))
}

/// Also of weak reads: a value comes from a write that had begun. Sums come from increments, which only the search can follow.
fn what_is_read_was_written(key: u32, events: &[Event]) -> Result<(), Box<Violation>> {
    if events.iter().any(|e| matches!(e.call, Call::Increment(_))) {
        return Ok(());
    }
    for read in events {
        let Some((at, Reply::Read { value: Some(value), .. })) = read.reply() else { continue };
        let writes = |e: &&Event| match e.call {
            Call::Put(written) => written == value,
            Call::Cas { new, .. } => new == Some(value),
            _ => false,
        };
        // What an outcome query decided against may still lie at fewer than a majority (the world checks that), and be read there.
        let was_decided_against = |e: &Event| events.iter().any(|q| q.call == Call::Outcome && q.op_id == e.op_id);
        let may_be_seen = |e: &Event| !e.is_failed() || read.promise == Promise::Weak && was_decided_against(e);
        if !events.iter().filter(writes).any(|e| e.invoked_at <= at && may_be_seen(e)) {
            let suspects: Vec<&Event> = events.iter().filter(writes).chain([read]).collect();
            return broken(Claim::ReadsWhatWasWritten, key, &suspects);
        }
    }
    Ok(())
}

/// Whether the event was told, at quorum or above, what is current: a read, a failed condition, or a conditional write over it.
fn looks(event: &Event) -> bool {
    let promised = event.promise != Promise::Weak || event.call.is_conditional();
    promised && !event.is_plain_write() && event.call != Call::Outcome && event.reply().is_some()
}

/// An acknowledged quorum write is seen by every later quorum read and by every later serial operation, or something of a later stamp is.
fn acknowledged_writes_are_seen(key: u32, events: &[Event]) -> Result<(), Box<Violation>> {
    for write in events {
        let Some((acknowledged_at, Reply::Written { version, .. })) = write.reply() else { continue };
        if write.promise != Promise::Quorum || !write.is_plain_write() || version.is_zero() {
            continue;
        }
        for later in events.iter().filter(|e| e.invoked_at > acknowledged_at && looks(e)) {
            let Some((at, reply)) = later.reply() else { continue };
            let is_lost = match reply {
                Reply::Read { value: None, version: Stamp::ZERO } | Reply::ConditionFailed { version: Stamp::ZERO } => {
                    let absent = matches!(reply, Reply::Read { .. });
                    absent && matches!(write.call, Call::Put(_)) && !could_be_deleted(events, at)
                }
                _ => !reply.version().is_zero() && reply.version() < version,
            };
            if is_lost {
                let claim = match later.call {
                    Call::Read => Claim::WriteIsRead,
                    _ => Claim::WriteSurvivesCas,
                };
                return broken(claim, key, &[write, later]);
            }
        }
    }
    Ok(())
}

fn could_be_deleted(events: &[Event], by: u64) -> bool {
    let deletes = |call| matches!(call, Call::Delete | Call::Cas { new: None, .. });
    events.iter().any(|e| deletes(e.call) && e.invoked_at <= by && !e.is_failed())
}

/// On a key whose every write is plain, quorum reads never go back in stamps.
fn reads_do_not_go_back(key: u32, events: &[Event]) -> Result<(), Box<Violation>> {
    if events.iter().any(|e| e.turns_serial()) {
        return Ok(());
    }
    let told = |e: &Event| match e.reply() {
        Some((at, Reply::Read { version, .. })) if e.promise != Promise::Weak => Some((at, version)),
        _ => None,
    };
    for first in events {
        let Some((at, version)) = told(first) else { continue };
        let goes_back =
            |e: &&Event| e.invoked_at > at && told(e).is_some_and(|(_, later)| !later.is_zero() && later < version);
        if let Some(second) = events.iter().find(goes_back) {
            return broken(Claim::ReadsRise, key, &[first, second]);
        }
    }
    Ok(())
}
