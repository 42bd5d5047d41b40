//! Evening out a [`Draft`]: replicas by weight, then primaries by replicas, each by moves along the shortest paths from nodes that have too
//! much to nodes that have too little (augmenting paths, as for a flow).

use std::collections::VecDeque;

use crate::proposal::{Draft, PART};

/// One partition goes from one node to another.
#[derive(Clone, Copy)]
struct Step {
    partition: usize,
    from: usize,
    to: usize,
}

/// Moves replicas until every node is near its target, or no path leads there.
pub(crate) fn balance_loads(draft: &mut Draft) {
    let nodes = draft.targets.len();
    let mut held: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    for (partition, list) in draft.lists.iter().enumerate() {
        list.iter().for_each(|node| held[*node].push(partition));
    }
    for node in 0..nodes {
        while draft.loads[node] * PART > draft.targets[node] + draft.tolerance(node) {
            let short = |n: usize| draft.loads[n] * PART < draft.targets[n];
            let path = replica_path(draft, &held, |n| n == node, short);
            if !move_replicas(draft, &mut held, path) {
                break;
            }
        }
        while draft.loads[node] * PART + draft.tolerance(node) < draft.targets[node] {
            let over = |n: usize| draft.loads[n] * PART > draft.targets[n];
            let path = replica_path(draft, &held, over, |n| n == node);
            if !move_replicas(draft, &mut held, path) {
                break;
            }
        }
    }
}

/// Makes members primaries in proportion to what they hold, to within one partition. Nothing is moved: only the order of lists changes.
pub(crate) fn balance_primaries(draft: &mut Draft) {
    let nodes = draft.targets.len();
    let mut first: Vec<Vec<usize>> = vec![Vec::new(); nodes];
    for (partition, list) in draft.lists.iter().enumerate() {
        first[list[0]].push(partition);
    }
    let replicas = draft.replicas as u64;
    let most: Vec<usize> = draft.loads.iter().map(|load| load.div_ceil(replicas) as usize).collect();
    let least: Vec<usize> = draft.loads.iter().map(|load| (load / replicas) as usize).collect();
    for node in 0..nodes {
        while first[node].len() > most[node] {
            let path = primary_path(draft, &first, |n| n == node, |n| first[n].len() < most[n]);
            if !move_primaries(draft, &mut first, path) {
                break;
            }
        }
    }
    for node in 0..nodes {
        while first[node].len() < least[node] {
            let path = primary_path(draft, &first, |n| first[n].len() > least[n], |n| n == node);
            if !move_primaries(draft, &mut first, path) {
                break;
            }
        }
    }
}

fn replica_path(
    draft: &Draft,
    held: &[Vec<usize>],
    is_source: impl Fn(usize) -> bool,
    is_sink: impl Fn(usize) -> bool,
) -> Option<Vec<Step>> {
    shortest_path(held.len(), is_source, is_sink, |from, to| {
        let candidates = if draft.can_ever_replace(from, to) { held[from].as_slice() } else { &[] };
        candidates.iter().copied().find(|partition| draft.can_replace(*partition, from, to))
    })
}

fn primary_path(
    draft: &Draft,
    first: &[Vec<usize>],
    is_source: impl Fn(usize) -> bool,
    is_sink: impl Fn(usize) -> bool,
) -> Option<Vec<Step>> {
    shortest_path(first.len(), is_source, is_sink, |from, to| {
        first[from].iter().copied().find(|partition| draft.lists[*partition].contains(&to))
    })
}

/// Takes the steps; false where there are none. A path that wants one partition twice is not taken: its second step was judged without the first.
fn move_replicas(draft: &mut Draft, held: &mut [Vec<usize>], path: Option<Vec<Step>>) -> bool {
    let Some(path) = path.filter(|path| is_free_of_repeats(path)) else { return false };
    for Step { partition, from, to } in path {
        let place = draft.lists[partition].iter().position(|node| *node == from).expect("a step starts at a replica");
        draft.lists[partition][place] = to;
        draft.loads[from] -= 1;
        draft.loads[to] += 1;
        hand_over(held, partition, from, to);
    }
    true
}

fn move_primaries(draft: &mut Draft, first: &mut [Vec<usize>], path: Option<Vec<Step>>) -> bool {
    let Some(path) = path else { return false };
    for Step { partition, from, to } in path {
        let list = &mut draft.lists[partition];
        let place = list.iter().position(|node| *node == to).expect("a step ends at a replica");
        list.swap(0, place);
        hand_over(first, partition, from, to);
    }
    true
}

fn hand_over(owned: &mut [Vec<usize>], partition: usize, from: usize, to: usize) {
    let place = owned[from].iter().position(|p| *p == partition).expect("a step starts at an owner");
    owned[from].swap_remove(place);
    owned[to].push(partition);
}

fn is_free_of_repeats(path: &[Step]) -> bool {
    path.iter().enumerate().all(|(at, step)| path[..at].iter().all(|earlier| earlier.partition != step.partition))
}

/// Breadth first from all sources to the first sink, over steps that `step` allows from one node to another by naming a partition.
fn shortest_path(
    nodes: usize,
    is_source: impl Fn(usize) -> bool,
    is_sink: impl Fn(usize) -> bool,
    step: impl Fn(usize, usize) -> Option<usize>,
) -> Option<Vec<Step>> {
    let mut queue: VecDeque<usize> = (0..nodes).filter(|node| is_source(*node)).collect();
    let mut reached = vec![false; nodes];
    queue.iter().for_each(|node| reached[*node] = true);
    let mut step_to: Vec<Option<Step>> = vec![None; nodes];
    while let Some(from) = queue.pop_front() {
        for to in 0..nodes {
            if reached[to] {
                continue;
            }
            let Some(partition) = step(from, to) else { continue };
            reached[to] = true;
            step_to[to] = Some(Step { partition, from, to });
            if is_sink(to) {
                let mut path: Vec<Step> = std::iter::successors(step_to[to], |step| step_to[step.from]).collect();
                path.reverse();
                return Some(path);
            }
            queue.push_back(to);
        }
    }
    None
}
