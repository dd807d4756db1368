//! The figures: as JSON, and as tables.

use std::collections::BTreeMap;
use std::fmt::Write;

use console::style;
use serde::Serialize;

use super::aware::Awareness;
use super::cold::{Boot, Part};
use super::console::Pause;
use super::meter::Spent;
use super::restored::{Restore, Way};
use super::stored::{Learnt, Size};
use super::{figures, median, of_boots, subject};
use crate::bench::machine::Machine;
use crate::bench::report::targets_table;
use crate::bench::targets::Target;
use crate::output::quantity::bytes;
use crate::output::table::{Align, Table};

/// Everything that one run found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it ran.
    machine: Machine,
    /// Memory of each machine, MiB.
    memory_mib: u32,
    /// Middle figures of boots with a quiet kernel.
    cold: Cold,
    /// One boot whose kernel says what it does.
    profile: Profile,
    /// The snapshot.
    stored: Size,
    /// Pages of its working set.
    hot_pages: u64,
    /// How well the owners of its pages predict it.
    aware: Awareness,
    /// A child of it.
    child: Size,
    /// Middle figures of restores, by where their pages come from.
    restores: BTreeMap<Way, Middle>,
    /// What was asked for, and what was reached.
    targets: Vec<Target>,
}

/// Boots.
#[derive(Debug, Serialize)]
pub struct Cold {
    /// How many.
    n: usize,
    /// From nothing to an answer.
    #[serde(flatten)]
    pub spent: Spent,
    /// Parts of it.
    parts: Vec<Part>,
}

/// Where the time of a boot goes. Its console takes a part of it.
#[derive(Debug, Serialize)]
pub struct Profile {
    /// Its parts.
    #[serde(flatten)]
    pub boot: Boot,
    /// The longest pauses between lines of the kernel.
    pub pauses: Vec<Pause>,
}

/// Restores of one kind. All but the reconnects are middle figures.
#[derive(Debug, Default, Serialize)]
pub struct Middle {
    /// How many.
    n: usize,
    /// From an order to an answer.
    #[serde(flatten)]
    pub spent: Spent,
    /// Faults that the pager has served.
    pub faults: f64,
    /// Connections that guests have opened anew, all together.
    pub reconnects: u64,
    /// Pages of the guest that are its own, because it wrote them.
    pub written_pages: f64,
    /// Memory that only this VMM has, with those pages, KiB.
    pub private_kib: f64,
    /// Of it, what is not the guest's, KiB.
    pub vmm_kib: f64,
}

impl Middle {
    fn of(restores: &[&Restore]) -> Self {
        // There is one at least, of each kind.
        let middle = |figure: &dyn Fn(&Restore) -> f64| {
            median(restores.iter().map(|restore| figure(restore))).unwrap_or_default()
        };
        #[expect(
            clippy::cast_precision_loss,
            reason = "counts of one machine fit 52 bits"
        )]
        let count = |figure: &dyn Fn(&Restore) -> u64| middle(&|restore| figure(restore) as f64);
        Self {
            n: restores.len(),
            spent: Spent {
                wall_ms: middle(&|restore| restore.spent.wall_ms),
                cpu_ms: middle(&|restore| restore.spent.cpu_ms),
            },
            faults: count(&|restore| restore.faults),
            reconnects: restores.iter().map(|restore| restore.reconnects).sum(),
            written_pages: count(&|restore| restore.written_pages),
            private_kib: count(&|restore| restore.private_kib),
            vmm_kib: count(&Restore::vmm_kib),
        }
    }
}

impl Report {
    /// From what was measured.
    pub fn new(
        machine: Machine,
        profile: Profile,
        boots: Vec<Boot>,
        stored: &Size,
        learnt: &Learnt,
        all: &[(Way, Restore)],
    ) -> Self {
        let cold = Cold::of(&boots);
        let of_way = |way| {
            let of_way = all.iter().filter(|(other, _)| *other == way);
            let restores: Vec<&Restore> = of_way.map(|(_, restore)| restore).collect();
            (!restores.is_empty()).then(|| (way, Middle::of(&restores)))
        };
        let restores: BTreeMap<Way, Middle> = Way::ALL.into_iter().filter_map(of_way).collect();
        let targets = figures::targets(&cold, &profile, *stored, learnt, &restores);
        Self {
            machine,
            memory_mib: subject::MEMORY_MIB,
            cold,
            profile,
            stored: *stored,
            hot_pages: learnt.hot_pages,
            aware: learnt.aware.clone(),
            child: learnt.child,
            restores,
            targets,
        }
    }

    /// Tables for people.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", self.machine);
        for (title, spent, parts) in [
            ("boot", self.cold.spent, &self.cold.parts),
            (
                "boot with a kernel that says what it does",
                self.profile.boot.spent,
                &self.profile.boot.parts,
            ),
        ] {
            let _ = write!(
                out,
                "\n{}\n{}",
                style(title).bold().cyan(),
                parts_table(spent, parts)
            );
        }
        for pause in &self.profile.pauses {
            let _ = writeln!(
                out,
                "{:8.1} ms  {} ─> {}",
                pause.cpu_ms, pause.after, pause.before
            );
        }
        let _ = write!(
            out,
            "\n{}\n{}",
            style("restore").bold().cyan(),
            self.restores_table()
        );
        for (name, size) in [("snapshot", self.stored), ("child", self.child)] {
            let _ = writeln!(
                out,
                "{name}: {} in its pool, {} stored, {:.1} % of its memory",
                bytes(size.pool_pages * 4096),
                bytes(size.stored_bytes),
                100.0 * size.part_of_memory()
            );
        }
        let _ = write!(
            out,
            "\n{}\n{}",
            style("whose pages").bold().cyan(),
            self.owners_table()
        );
        let (with, without) = (self.aware.with, self.aware.without);
        let _ = writeln!(
            out,
            "{} pages predicted by owner: {:.0} % of them touched, {:.0} % of those that were touched; without: {:.0} %, {:.0} %",
            with.pages,
            100.0 * with.precision,
            100.0 * with.recall,
            100.0 * without.precision,
            100.0 * without.recall
        );
        let _ = write!(
            out,
            "\n{}\n{}",
            style("targets").bold().cyan(),
            targets_table(&self.targets)
        );
        out
    }

    fn owners_table(&self) -> Table {
        let mut table = Table::new([
            ("owner", Align::Left),
            ("pages", Align::Right),
            ("touched", Align::Right),
        ]);
        for of in &self.aware.owners {
            table.row([
                of.owner.to_owned(),
                of.pages.to_string(),
                of.touched.to_string(),
            ]);
        }
        table
    }

    fn restores_table(&self) -> Table {
        let mut table = Table::new([
            ("pages from", Align::Left),
            ("n", Align::Right),
            ("wall ms", Align::Right),
            ("cpu ms", Align::Right),
            ("faults", Align::Right),
            ("reconnects", Align::Right),
            ("written", Align::Right),
            ("private KiB", Align::Right),
            ("VMM KiB", Align::Right),
        ]);
        for (way, middle) in &self.restores {
            table.row([
                way.name().to_owned(),
                middle.n.to_string(),
                format!("{:.1}", middle.spent.wall_ms),
                format!("{:.1}", middle.spent.cpu_ms),
                format!("{:.0}", middle.faults),
                middle.reconnects.to_string(),
                format!("{:.0}", middle.written_pages),
                format!("{:.0}", middle.private_kib),
                format!("{:.0}", middle.vmm_kib),
            ]);
        }
        table
    }
}

impl Cold {
    fn of(boots: &[Boot]) -> Self {
        let part = |index: usize, figure: &dyn Fn(&Spent) -> f64| {
            median((boots.iter()).filter_map(|boot| Some(figure(&boot.parts.get(index)?.spent))))
                .unwrap_or_default()
        };
        let parts = boots.first().map(|boot| boot.parts.as_slice());
        let parts = (parts.unwrap_or_default().iter().enumerate())
            .map(|(index, first)| Part {
                name: first.name.clone(),
                spent: Spent {
                    wall_ms: part(index, &|spent| spent.wall_ms),
                    cpu_ms: part(index, &|spent| spent.cpu_ms),
                },
                split: None,
            })
            .collect();
        let all = |figure: &dyn Fn(&Spent) -> f64| {
            of_boots(boots, |boot| figure(&boot.spent)).unwrap_or_default()
        };
        Self {
            n: boots.len(),
            spent: Spent {
                wall_ms: all(&|spent| spent.wall_ms),
                cpu_ms: all(&|spent| spent.cpu_ms),
            },
            parts,
        }
    }
}

fn parts_table(all: Spent, parts: &[Part]) -> Table {
    let mut table = Table::new([
        ("part", Align::Left),
        ("wall ms", Align::Right),
        ("cpu ms", Align::Right),
        ("guest", Align::Right),
        ("VMM", Align::Right),
        ("host's kernel", Align::Right),
    ]);
    let mut row = |name: &str, spent: &Spent, split: [String; 3]| {
        let [guest, vmm, kernel] = split;
        table.row([
            name.to_owned(),
            format!("{:.0}", spent.wall_ms),
            format!("{:.0}", spent.cpu_ms),
            guest,
            vmm,
            kernel,
        ]);
    };
    for part in parts {
        let split = part.split.map(|split| {
            [split.guest_ms, split.vmm_ms, split.host_kernel_ms].map(|ms| ms.to_string())
        });
        row(&part.name, &part.spent, split.unwrap_or_default());
    }
    row("all", &all, Default::default());
    table
}
