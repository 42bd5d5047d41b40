//! What befalls the world: the faults of a seed, as they begin and end.

use std::time::Duration;

use crate::agenda::Event;
use crate::faults::{Fault, HEALED, Kind, MOST};

use super::{CLIENTS, NODES, World, seconds};

impl World {
    pub(super) fn begin(&mut self, number: usize) {
        let fault = self.faults[number].clone();
        self.network.set_calm(false);
        self.note("fault", &[number as u64], || format!("{number}: {fault}"));
        let sites = NODES + CLIENTS;
        let (network, agenda) = (&mut self.network, &mut self.agenda);
        match &fault.kind {
            Kind::Partition { one } | Kind::OneWay { one } => {
                let both = matches!(fault.kind, Kind::Partition { .. });
                for from in one.iter().copied() {
                    for to in (0..sites).filter(|to| !one.contains(to)) {
                        network.block(number, from, to, agenda);
                        if both {
                            network.block(number, to, from, agenda);
                        }
                    }
                }
            }
            Kind::Loss { probability } => {
                for from in 0..sites {
                    (0..sites).for_each(|to| network.lose(number, from, to, *probability));
                }
            }
            Kind::Slow { site, by } => {
                for from in 0..sites {
                    let reaches = |to: &usize| site.is_none_or(|site| site == from || site == *to);
                    (0..sites).filter(reaches).for_each(|to| network.slow(number, from, to, *by));
                }
            }
            Kind::Cut { site } => {
                (0..sites).filter(|to| to != site).for_each(|to| network.cut(number, *site, to, agenda));
            }
            Kind::Crash { nodes, apart, down } => {
                for (i, node) in nodes.iter().copied().enumerate() {
                    let at = agenda.now() + *apart * i as u32;
                    agenda.at(at, Event::Crash { fault: number, node });
                    let down = down.mul_f64(0.5 + self.random.fraction()).max(Duration::from_millis(1));
                    agenda.at((at + down).min(HEALED), Event::Restart { node });
                }
            }
            Kind::ClockStep { node, millis } => self.hosts[*node].clock.step(*millis),
            Kind::SlowDisk { node, by } => self.hosts[*node].slow_disk = *by,
            Kind::FailingDisk { node } => self.hosts[*node].disk().fail_sync(1),
            Kind::FullDisk { node } => self.hosts[*node].fill_disk(),
            Kind::Rot { node } => {
                if self.hosts[*node].rot() {
                    self.network.hit(number);
                }
            }
        }
    }

    pub(super) fn end(&mut self, number: usize) {
        self.note("mended", &[number as u64], || number.to_string());
        self.network.mend(number, &mut self.agenda);
        match self.faults[number].kind {
            Kind::ClockStep { node, .. } => self.hosts[node].clock.step(0),
            Kind::SlowDisk { node, .. } => self.hosts[node].slow_disk = Duration::ZERO,
            Kind::FullDisk { node } => self.hosts[node].mend_disk(),
            _ => {}
        }
    }

    /// All faults have ended; whoever is down comes up.
    pub(super) fn heal(&mut self) {
        self.note("heal", &[], String::new);
        self.network.set_calm(true);
        for node in 0..NODES {
            self.hosts[node].mend_disk();
            self.start(node);
        }
    }

    pub(super) fn crash(&mut self, fault: usize, node: usize) {
        if !self.hosts[node].is_up() {
            return;
        }
        let in_flight = self.hosts[node].node().map_or(0, |n| n.in_flight());
        self.note("crash", &[node as u64, in_flight as u64], || format!("n{node} with {in_flight} under way"));
        for _ in 0..in_flight {
            self.network.hit(fault);
        }
        self.hosts[node].crash();
        self.up[node] = false;
        self.down_by[node] = Some(fault);
        self.network.crash(node, &mut self.agenda);
    }

    /// A node cannot go on: somebody restarts it.
    pub(super) fn fail(&mut self, node: usize, why: &str) {
        self.trace.remark(self.agenda.now(), || format!("n{node} fails: {why}"));
        let now = self.agenda.now();
        let is_its = |fault: &Fault| fault.kind.failing_disk_of() == Some(node) && fault.begins <= now;
        let Some(fault) = self.faults.iter().rposition(is_its) else {
            self.mishaps.push(format!("{:.3} s: node {} fails without a fault: {why}", seconds(now), node + 1));
            return self.fail_by(MOST, node);
        };
        self.network.hit(fault);
        self.fail_by(fault, node);
    }

    fn fail_by(&mut self, fault: usize, node: usize) {
        self.crash(fault, node);
        let delay = self.random.millis(100, 1_500);
        self.agenda.after(delay, Event::Restart { node });
    }

    /// A message came to a node: faults of the node itself show in what it makes of it.
    pub(super) fn count_hits(&mut self, node: usize) {
        let now = self.agenda.now();
        for (number, fault) in self.faults.iter().enumerate() {
            let is_on = fault.begins <= now && now < fault.ends;
            match fault.kind {
                Kind::ClockStep { node: at, .. } | Kind::SlowDisk { node: at, .. } | Kind::FullDisk { node: at }
                    if is_on && at == node =>
                {
                    self.network.hit(number);
                }
                _ => {}
            }
        }
    }
}
