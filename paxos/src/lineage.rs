//! What a record remembers of the operations before it (PROTOCOL.md 1.5 P6, 1.8, 2.1).

use dunlin_protocol::{Ancestor, Millis, OpId, RecordHead, Stamp};

/// The lineage and reach of a record that follows `current`: `mark` (an operation decided never to be applied), then `current` itself, then its
/// ancestors; at most `k` of them, and none, but the mark, of an operation before `oldest`. Every entry that goes raises the reach: to where the operation was
/// applied, or, for one that never is, to its id.
pub(crate) fn inherit(
    current: &RecordHead,
    ancestors: &[Ancestor],
    mark: Option<OpId>,
    k: usize,
    oldest: Millis,
) -> (Vec<Ancestor>, Stamp) {
    let mark = mark.map(|op_id| Ancestor { op_id, stamp: Stamp::ZERO });
    // An absent record is no ancestor, and one that no operation made (an expiry, an outcome query) hides none.
    let own = !current.stamp.is_zero() && !current.op_id.is_zero();
    let own = own.then_some(Ancestor { op_id: current.op_id, stamp: current.stamp });
    let mut lineage: Vec<Ancestor> = mark.into_iter().collect();
    let mut reach = current.reach;
    for ancestor in own.into_iter().chain(ancestors.iter().copied()) {
        if lineage.len() < k.max(1) && ancestor.op_id.wall() >= oldest {
            lineage.push(ancestor);
        } else {
            reach = reach.max(if ancestor.stamp.is_zero() { ancestor.op_id } else { ancestor.stamp });
        }
    }
    (lineage, reach)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64) -> Stamp {
        Stamp::new(Millis(wall), 0, 1)
    }

    fn applied(op: u64, stamp: u64) -> Ancestor {
        Ancestor { op_id: at(op), stamp: at(stamp) }
    }

    fn never(op: u64) -> Ancestor {
        Ancestor { op_id: at(op), stamp: Stamp::ZERO }
    }

    fn check(
        current: (u64, u64, u64),
        ancestors: &[Ancestor],
        mark: Option<u64>,
        k: usize,
        want: &[Ancestor],
        reach: u64,
    ) {
        let zero_or = |wall| if wall == 0 { Stamp::ZERO } else { at(wall) };
        let (stamp, op_id, below) = current;
        let head =
            RecordHead { stamp: zero_or(stamp), op_id: zero_or(op_id), reach: zero_or(below), ..RecordHead::ABSENT };
        let got = inherit(&head, ancestors, mark.map(at), k, Millis(100));
        assert_eq!(got, (want.to_vec(), zero_or(reach)));
    }

    #[test]
    fn what_is_remembered() {
        // Absent: nothing. A plain or serial record: itself.
        check((0, 0, 0), &[], None, 4, &[], 0);
        check((205, 200, 7), &[], None, 4, &[applied(200, 205)], 7);
        // Newest first; what exceeds K raises the reach, an (X, 0) to X.
        let old = [applied(190, 195), never(180)];
        check((205, 200, 7), &old, None, 4, &[applied(200, 205), old[0], old[1]], 7);
        check((205, 200, 7), &old, None, 2, &[applied(200, 205), old[0]], 180);
        check((205, 200, 7), &old, None, 1, &[applied(200, 205)], 195);
        check((205, 200, 7), &old, Some(203), 1, &[never(203)], 205);
        // The reach never falls.
        check((205, 200, 201), &old, None, 1, &[applied(200, 205)], 201);
        // What is past its lifetime goes, wherever it stands; the mark stays.
        let mixed = [applied(90, 150), applied(160, 165), never(99)];
        check((205, 200, 7), &mixed, None, 4, &[applied(200, 205), mixed[1]], 150);
        check((0, 0, 0), &[], Some(50), 4, &[never(50)], 0);
        // A record that no operation made is no ancestor and hides nothing.
        check((205, 0, 7), &mixed[1..2], None, 4, &[mixed[1]], 7);
    }
}
