//! The table, as Markdown, a row as soon as it is measured.

use crate::row::{Measured, Row};
use crate::store::Kind;

pub(crate) struct Table {
    stores: Vec<Kind>,
}

impl Table {
    pub(crate) fn new(stores: &[Kind]) -> Self {
        Self { stores: stores.to_vec() }
    }

    pub(crate) fn head(&self) {
        let names: Vec<&str> = self.stores.iter().map(|kind| kind.name()).collect();
        println!("| row | work | {} |", names.join(" | "));
        println!("|---|---|{}", "---|".repeat(names.len()));
    }

    /// Medians; processor time of one operation in brackets.
    pub(crate) fn row(&mut self, row: Row, runs: &[Vec<Measured>]) {
        let (work, unit) = row.describe();
        let cells = runs.iter().map(|runs| {
            let value = median(runs.iter().map(|run| run.value).collect());
            let cpu = median(runs.iter().filter_map(|run| run.cpu_micros).collect());
            match (value, cpu) {
                (Some(value), Some(cpu)) => format!("{} ({cpu:.2} us)", unit.show(value)),
                (Some(value), None) => unit.show(value),
                (None, _) => "failed".to_owned(),
            }
        });
        let cells: Vec<String> = cells.collect();
        println!("| `{}` | {work} | {} |", row.name(), cells.join(" | "));
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
