use dunlin_protocol::message::{PageEntry, ReplicaPage};
use dunlin_protocol::register::{PendingView, View, Want};
use dunlin_protocol::{Ballot, Content, Key, Level, Millis, PartitionId, Quorums, Record, ReplicaSet, Status, Tick};
use dunlin_quorum::{PageRequest, Scan, ScanEffect, ScanEnding, ScanItem, ScanPlan};

use crate::cluster::{DEADLINE, SPECULATE_AFTER, record, stamp};

const NOW: Millis = Millis(50);

fn place(name: &str) -> (PartitionId, Key) {
    (PartitionId(u16::from(name.as_bytes()[0] > b'm')), Key::new(name.as_bytes().to_vec()).expect("a key"))
}

fn plain(n: u64) -> View {
    View { record: record(stamp(n)).into(), ..View::absent() }
}

fn deleted(n: u64) -> View {
    View { record: Record { content: Content::Tombstone, ..record(stamp(n)) }.into(), ..View::absent() }
}

fn expired(n: u64, ballot: Ballot) -> View {
    View { record: Record { expires_at: NOW, ..record(stamp(n)) }.into(), ballot, ..View::absent() }
}

fn committed(n: u64, ballot: u64) -> View {
    View { ballot: stamp(ballot), ..plain(n) }
}

fn half_accepted(old: u64, n: u64, ballot: u64) -> View {
    let pending = PendingView { ballot: stamp(ballot), record: record(stamp(n)).into() };
    View { pending: Some(pending), promised: stamp(ballot), ..plain(old) }
}

/// What a replica holds, in order.
type Held = Vec<(&'static str, View)>;

fn page(held: &Held, request: &PageRequest) -> ReplicaPage {
    let behind = |name: &str| request.after.as_ref().is_none_or(|after| place(name) > *after);
    let mut left = held.iter().filter(|(name, _)| behind(name));
    let entries = left.by_ref().take(request.limit as usize).map(|(name, view)| {
        let (partition, key) = place(name);
        let mut view = view.clone();
        if request.want == Want::HEAD && !view.record.head.tombstone {
            view.record.content = None;
        }
        PageEntry { partition, key, view }
    });
    let entries: Vec<_> = entries.collect();
    ReplicaPage { entries, done: left.next().is_none() }
}

fn scan(replicas: usize, level: &str, limit: u32, after: Option<&str>) -> Scan {
    let level: Level = level.parse().expect(level);
    Scan::new(ScanPlan {
        quorums: Quorums::majority(replicas),
        replicas,
        alive: ReplicaSet::first(replicas),
        order: (0..replicas).collect(),
        level,
        want_value: true,
        wall: NOW,
        after: after.map(place),
        limit,
        speculate_after: SPECULATE_AFTER,
        deadline: DEADLINE,
    })
}

/// Runs a scan; replicas without a list fail.
fn run(scan: &mut Scan, replicas: &[Option<Held>]) -> ScanEnding {
    scan.start(Tick(0));
    while let Some(effect) = scan.poll_effect() {
        match effect {
            ScanEffect::Send { replica, page: request } => {
                let page = replicas[replica].as_ref().map(|held| page(held, &request)).ok_or(Status::Connect);
                scan.handle_page(Tick(0), replica, page.clone());
                scan.handle_page(Tick(0), replica, page);
            }
            ScanEffect::Finish(ending) => {
                assert!(scan.is_done() && scan.poll_timeout().is_none());
                return ending;
            }
        }
    }
    panic!("no end")
}

/// Keys with their stamps, `None` for unsettled ones, and the last key of the complete span.
type Shown = (Vec<(String, Option<u64>)>, Option<String>);

fn shown(ending: ScanEnding) -> Shown {
    let ScanEnding::Page { items, complete_upto } = ending else { panic!("{ending:?}") };
    let items = items.into_iter().map(|item| match item {
        ScanItem::Settled { key, record, .. } => {
            assert_eq!(record.content, Some(Content::value(record.head.stamp.to_string())), "{key}");
            (key.to_string(), Some(record.head.stamp.wall().0))
        }
        ScanItem::Unsettled { key, .. } => (key.to_string(), None),
    });
    (items.collect(), complete_upto.map(|(_, key)| key.to_string()))
}

#[track_caller]
fn check(level: &str, limit: u32, replicas: &[Held], items: &[(&str, Option<u64>)], upto: Option<&str>) {
    let replicas: Vec<_> = replicas.iter().cloned().map(Some).collect();
    let items = items.iter().map(|(key, stamp)| ((*key).to_owned(), *stamp)).collect();
    let ending = run(&mut scan(3, level, limit, None), &replicas);
    assert_eq!(shown(ending), (items, upto.map(str::to_owned)));
}

#[test]
fn equal_replicas_show_what_lives() {
    let held = || {
        vec![
            ("a", plain(1)),
            ("b", deleted(2)),
            ("c", expired(3, Ballot::ZERO)),
            ("d", expired(4, stamp(5))),
            ("e", committed(6, 7)),
            ("z", plain(8)),
        ]
    };
    let items = [("a", Some(1)), ("d", None), ("e", Some(6)), ("z", Some(8))];
    check("quorum", 10, &[held(), held(), held()], &items, None);
    check("quorum", 3, &[held(), held(), held()], &[("a", Some(1))], Some("c"));
    check("one", 10, &[held(), vec![], vec![]], &[("a", Some(1)), ("e", Some(6)), ("z", Some(8))], None);
    check("quorum", 10, &[vec![], vec![], vec![]], &[], None);
}

#[test]
fn what_differs_is_left_to_a_read() {
    let here = vec![("a", plain(1)), ("b", plain(2)), ("c", committed(3, 4)), ("d", half_accepted(5, 6, 7))];
    let there = vec![("a", plain(1)), ("b", plain(9)), ("d", plain(5)), ("e", plain(6))];
    let items = [("a", Some(1)), ("b", None), ("c", Some(3)), ("d", None), ("e", None)];
    check("quorum", 10, &[here.clone(), there.clone(), vec![]], &items, None);
    // The record that decides is at a replica that shows only digests.
    let items = [("a", Some(1)), ("b", None), ("c", None), ("d", None), ("e", None)];
    check("quorum", 10, &[there, here, vec![]], &items, None);
}

#[test]
fn a_page_ends_where_the_first_replica_stops() {
    let here = vec![("a", plain(1)), ("b", plain(2)), ("c", plain(3)), ("n", plain(4))];
    let there = vec![("b", plain(2)), ("c", plain(3)), ("n", plain(4))];
    check("quorum", 2, &[here.clone(), there.clone(), vec![]], &[("a", None), ("b", Some(2))], Some("b"));
    // Nothing is lost or shown twice from page to page.
    let replicas = [Some(here), Some(there), None];
    let (mut after, mut keys) = (None::<String>, Vec::new());
    loop {
        let (items, upto) = shown(run(&mut scan(3, "quorum", 2, after.as_deref()), &replicas));
        keys.extend(items.into_iter().map(|(key, _)| key));
        let Some(upto) = upto else { break };
        after = Some(upto);
    }
    assert_eq!(keys, ["a", "b", "c", "n"]);
    // Replicas that hold different keys do not make the page longer than was asked for.
    let here = vec![("a", plain(1)), ("c", plain(3))];
    let there = vec![("b", plain(2)), ("d", plain(4))];
    check("quorum", 2, &[here, there, vec![]], &[("a", None), ("b", None)], Some("b"));
}

#[test]
fn failures_are_replaced_or_end_it() {
    let held = || Some(vec![("a", plain(1))]);
    let (items, upto) = shown(run(&mut scan(3, "quorum", 5, None), &[None, held(), held()]));
    assert_eq!((items, upto), (vec![("a".to_owned(), Some(1))], None));
    let failed = ScanEnding::Failed { status: Status::Connect, need: 2, got: 1 };
    assert_eq!(run(&mut scan(3, "quorum", 5, None), &[None, held(), None]), failed);
    // A page that goes nowhere or back is no page.
    let out_of_order = Some(vec![("b", plain(1)), ("a", plain(1))]);
    let failed = ScanEnding::Failed { status: Status::BadFrame, need: 2, got: 0 };
    assert_eq!(run(&mut scan(3, "quorum", 5, None), &[out_of_order.clone(), out_of_order, held()]), failed);
    let mut stuck = scan(3, "one", 5, Some("a"));
    stuck.start(Tick(0));
    for replica in 0..3 {
        stuck.handle_page(Tick(0), replica, Ok(ReplicaPage { entries: vec![], done: false }));
    }
    let endings: Vec<_> = std::iter::from_fn(|| stuck.poll_effect()).collect();
    let failed = ScanEnding::Failed { status: Status::BadFrame, need: 1, got: 0 };
    assert_eq!(endings.last(), Some(&ScanEffect::Finish(failed)));
}

#[test]
fn slow_replicas_are_hedged_and_given_up() {
    let mut slow = scan(3, "quorum", 5, None);
    slow.start(Tick(0));
    let mut asked = Vec::new();
    while let Some(at) = slow.poll_timeout() {
        slow.handle_timeout(at);
        while let Some(effect) = slow.poll_effect() {
            match effect {
                ScanEffect::Send { replica, page } => asked.push((replica, page.want)),
                ScanEffect::Finish(ending) => assert_eq!(ending, ScanEnding::Timeout { need: 2, got: 0 }),
            }
        }
    }
    assert_eq!(asked, [(0, Want::VALUE), (1, Want::HEAD), (2, Want::VALUE)]);
    assert!(slow.is_done());

    let mut slow = scan(5, "one", 5, None);
    slow.start(Tick(0));
    let mut asked = 0;
    while let Some(at) = slow.poll_timeout() {
        asked += std::iter::from_fn(|| slow.poll_effect()).filter(|e| matches!(e, ScanEffect::Send { .. })).count();
        slow.handle_timeout(at);
    }
    assert_eq!(asked, 5, "whoever stands in may hang, too");
}
