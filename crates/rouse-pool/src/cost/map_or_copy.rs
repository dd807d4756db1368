//! Whether pages of a pool are mapped or copied: what a run of them costs an instance one way and the other.
//!
//! ```text
//!  mapped   |TTTTTT|oo|TTTTTTTT|     a mapping of its own for `oo`, and one more because `T` is cut in two
//!  copied   |TTTTTTTTTTTTTTTTTT|     one mapping; `oo` is read into memory of the instance's own
//! ```

use rouse_snapshot::model::PAGE_SIZE;
use serde::Serialize;

use super::CostInputs;

/// Mappings that a run costs: its own, and that behind it.
const MAPPINGS: f64 = 2.0;
/// What is paid once for a template, or for a snapshot, is shared by at least so many instances.
const SHARED_BY: f64 = 10.0;
/// To have an entry of a template's page table copied into that of a clone, ns. The one cost that is not measured at the
/// start: only a fork shows it, and a node cannot fork once it has threads.
const ENTRY_NS: f64 = 20.0;
/// What choices are shown up to, and the longest hole that is filled.
const MOST_PAGES: u64 = 64;

/// Decides by measured costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MapOrCopy {
    mapping_ns: f64,
    read_ns: f64,
    copy_ahead_ns: f64,
    recopy_ns: f64,
    fill_ns: f64,
}

/// What follows from the costs, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CopyChoices {
    /// A restore copies a run between pages of a template if at most so many of its pages are not written; `None`: never.
    pub restore_unwritten: Option<u64>,
    /// A restore copies a run of pages that are all written, up to this length, pages.
    pub restore_written: u64,
    /// A template copies a run if at most so many of its pages are written by clones; `None`: never.
    pub template_written: Option<u64>,
    /// A template copies a run of pages that are not written up to this length, pages.
    pub template_pages: u64,
    /// Zeros inside of saved memory are saved too if they are fewer pages than this.
    pub hole_pages: u64,
}

impl MapOrCopy {
    /// For a host.
    pub fn new(inputs: &CostInputs) -> Self {
        Self {
            mapping_ns: inputs.mapping_ns,
            read_ns: inputs.read_ns,
            copy_ahead_ns: inputs.copy_ahead_ns,
            recopy_ns: inputs.recopy_ns,
            fill_ns: inputs.fill_ns,
        }
    }

    /// Does a restored instance copy a run of `pages`, of which calls write `written`?
    ///
    /// What is written is copied in any case. What is not takes a page of memory, which pushes out another one that has to
    /// be filled again.
    pub fn restore_copies(&self, pages: u64, written: u64) -> bool {
        let (pages, written) = (pages as f64, written as f64);
        let mapped = MAPPINGS * self.mapping_ns + written * self.copy_ahead_ns;
        let copied = pages * self.read_ns + (pages - written) * self.fill_ns;
        written > 0.0 && copied <= mapped
    }

    /// Does a template copy a run of `pages`, of which its clones write `written`, once for all of them?
    ///
    /// What clones write they copy again, which takes longer of a page that is mapped.
    pub fn template_copies(&self, pages: u64, written: u64) -> bool {
        let (pages, written) = (pages as f64, written as f64);
        let once = pages * (self.read_ns + self.fill_ns) / SHARED_BY;
        let again = written * (self.recopy_ns - self.copy_ahead_ns).max(0.0);
        once + again + pages * ENTRY_NS <= MAPPINGS * self.mapping_ns
    }

    /// Zeros of fewer pages than this, inside of saved memory, are saved too: at least one.
    ///
    /// Each is a page of the pool, shared by all instances; a hole is two mappings more in each of them.
    pub fn hole_pages(&self) -> u64 {
        let pages = MAPPINGS * self.mapping_ns * SHARED_BY / self.fill_ns.max(1.0);
        (pages as u64 + 1).clamp(1, MOST_PAGES)
    }

    /// All choices at a glance.
    pub fn choices(&self) -> CopyChoices {
        let longest = |copies: &dyn Fn(u64) -> bool| {
            (1..=MOST_PAGES)
                .take_while(|pages| copies(*pages))
                .last()
                .unwrap_or(0)
        };
        CopyChoices {
            restore_unwritten: (0..MOST_PAGES)
                .take_while(|unwritten| self.restore_copies(unwritten + 1, 1))
                .last(),
            restore_written: longest(&|pages| self.restore_copies(pages, pages)),
            template_written: (0..MOST_PAGES)
                .take_while(|written| self.template_copies((*written).max(1), *written))
                .last(),
            template_pages: longest(&|pages| self.template_copies(pages, 0)),
            hole_pages: self.hole_pages(),
        }
    }
}

impl Default for MapOrCopy {
    fn default() -> Self {
        Self::new(&CostInputs::default())
    }
}

/// The longest hole that is filled, bytes.
pub const MOST_HOLE_BYTES: usize = (MOST_PAGES * PAGE_SIZE) as usize;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn costs() -> impl Strategy<Value = MapOrCopy> {
        let ns = || 0.0..10_000.0_f64;
        (ns(), ns(), ns(), ns(), ns()).prop_map(
            |(mapping_ns, read_ns, copy_ahead_ns, recopy_ns, fill_ns)| MapOrCopy {
                mapping_ns,
                read_ns,
                copy_ahead_ns,
                recopy_ns,
                fill_ns,
            },
        )
    }

    #[test]
    fn where_it_was_first_built() {
        let choices = MapOrCopy::default().choices();
        assert_eq!(
            choices,
            CopyChoices {
                restore_unwritten: Some(1),
                restore_written: MOST_PAGES,
                template_written: Some(2),
                template_pages: 8,
                hole_pages: 16,
            }
        );
    }

    #[test]
    fn other_hosts_choose_otherwise() {
        let slow_mappings = MapOrCopy {
            mapping_ns: 10_000.0,
            ..MapOrCopy::default()
        };
        let slow_reads = MapOrCopy {
            read_ns: 10_000.0,
            ..MapOrCopy::default()
        };
        assert!(!MapOrCopy::default().restore_copies(4, 1) && slow_mappings.restore_copies(4, 1));
        assert!(MapOrCopy::default().restore_copies(1, 1) && !slow_reads.restore_copies(1, 1));
        assert!(slow_mappings.hole_pages() > MapOrCopy::default().hole_pages());
        assert_eq!(slow_reads.choices().restore_unwritten, None);
    }

    proptest! {
        #[test]
        fn more_unwritten_pages_never_speak_for_a_copy(
            costs in costs(), written in 0..20_u64, more in 0..20_u64, still in 1..20_u64,
        ) {
            let pages = written + more;
            if !costs.restore_copies(pages, written) {
                prop_assert!(!costs.restore_copies(pages + still, written));
            }
            if !costs.template_copies(pages, written) {
                prop_assert!(!costs.template_copies(pages + still, written));
            }
        }

        #[test]
        fn dearer_mappings_never_speak_against_a_copy(
            costs in costs(), pages in 1..40_u64, part in 0.0..=1.0_f64, dearer in 0.0..10_000.0_f64,
        ) {
            let written = (pages as f64 * part) as u64;
            let dear = MapOrCopy { mapping_ns: costs.mapping_ns + dearer, ..costs };
            prop_assert!(costs.restore_copies(pages, written) <= dear.restore_copies(pages, written));
            prop_assert!(costs.template_copies(pages, written) <= dear.template_copies(pages, written));
            prop_assert!(costs.hole_pages() <= dear.hole_pages());
        }
    }
}
