//! What a page costs an instance, from which follows what is worth preparing.

use rouse_pool::cost::CostInputs;

/// Measured inputs, nanoseconds a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Costs {
    /// To copy a page ahead, in a batch (`MADV_POPULATE_WRITE`).
    pub copy_ahead: u32,
    /// To copy it when it is written (a copy-on-write fault).
    pub copy_fault: u32,
    /// To have a page in the page table of a template copied into that of a clone.
    pub map_ahead: u32,
    /// To map it when it is read (a minor fault).
    pub map_fault: u32,
}

impl Costs {
    /// What was measured on this host. Instances meet one fault here and one there.
    pub fn of(inputs: &CostInputs) -> Self {
        let ns = |ns: f64| ns.clamp(0.0, 1e6) as u32;
        Self {
            copy_ahead: ns(inputs.copy_ahead_ns),
            copy_fault: ns(inputs.lone_copy_fault_ns),
            map_fault: ns(inputs.lone_map_fault_ns),
            ..Self::default()
        }
    }
}

impl Default for Costs {
    /// As measured on the two cores where this was first built; `docs/working-sets.md` says how.
    fn default() -> Self {
        Self {
            copy_ahead: 1200,
            copy_fault: 2400,
            map_ahead: 20,
            map_fault: 1000,
        }
    }
}

/// A share that is the certain event.
pub(super) const ALWAYS: u16 = u16::MAX;
/// Preparing what hardly ever is touched never pays, however cheap: it fills page tables.
const LEAST: u16 = ALWAYS / 10;

/// What is done with a page so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Now {
    /// Nothing was decided, or it counts no more.
    Undecided,
    /// It is not prepared.
    Bare,
    /// It is prepared.
    Prepared,
}

impl Costs {
    /// Is a page that this share of invocations writes worth being copied ahead?
    pub(super) fn copy_pays(&self, share: u16, now: Now) -> bool {
        beyond(share, threshold(self.copy_ahead, self.copy_fault), now)
    }

    /// Is a page that this share of invocations touches worth being mapped ahead?
    pub(super) fn map_pays(&self, share: u16, now: Now) -> bool {
        beyond(share, threshold(self.map_ahead, self.map_fault), now)
    }

    /// What preparing so many pages saves an invocation that touches them all, nanoseconds.
    pub(super) fn value(&self, written: u64, read: u64) -> f64 {
        let copy = f64::from(self.copy_fault.saturating_sub(self.copy_ahead));
        let map = f64::from(self.map_fault.saturating_sub(self.map_ahead));
        written as f64 * copy + read as f64 * map
    }

    /// What preparing a page saved (or cost, if negative) one invocation, nanoseconds.
    pub(super) fn gain(&self, copied: bool, written: bool, touched: bool) -> i64 {
        let [copy_ahead, copy_fault, map_ahead, map_fault] = [
            self.copy_ahead,
            self.copy_fault,
            self.map_ahead,
            self.map_fault,
        ]
        .map(i64::from);
        match (copied, written, touched) {
            (true, true, _) => copy_fault - copy_ahead,
            (true, false, true) => map_fault - copy_ahead,
            (true, false, false) => -copy_ahead,
            // The fault comes all the same, to copy.
            (false, true, _) => -map_ahead,
            (false, false, true) => map_fault - map_ahead,
            (false, false, false) => -map_ahead,
        }
    }
}

/// The share above which `ahead` for all costs less than `fault` for those who need it.
fn threshold(ahead: u32, fault: u32) -> u16 {
    let share = u64::from(ahead) * u64::from(ALWAYS) / u64::from(fault.max(1));
    share.clamp(u64::from(LEAST), u64::from(ALWAYS - LEAST)) as u16
}

/// Pages at the edge must not make programs change with each observation, and hardly gain or lose anything. It is
/// harder to get in than to stay: what is prepared can be seen to be useless in blind boots only, so each page that
/// gets in by chance stays for long.
fn beyond(share: u16, threshold: u16, now: Now) -> bool {
    let margin = threshold.min(ALWAYS - threshold);
    match now {
        Now::Undecided => share > threshold + margin / 10,
        Now::Bare => share > threshold + margin / 2,
        Now::Prepared => share >= threshold - margin / 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(share: u32) -> u16 {
        (u32::from(ALWAYS) * share / 100) as u16
    }

    #[test]
    fn copying_ahead_pays_for_what_most_invocations_write() {
        let costs = Costs::default();
        assert!(costs.copy_pays(percent(60), Now::Undecided));
        assert!(!costs.copy_pays(percent(50), Now::Undecided));
        assert!(!costs.copy_pays(percent(70), Now::Bare), "not by chance");
        assert!(costs.copy_pays(percent(80), Now::Bare));
        assert!(costs.copy_pays(percent(45), Now::Prepared), "it stays");
        assert!(!costs.copy_pays(percent(35), Now::Prepared));
    }

    #[test]
    fn mapping_ahead_pays_for_what_some_invocations_touch() {
        let costs = Costs::default();
        assert!(costs.map_pays(percent(20), Now::Bare));
        assert!(!costs.map_pays(percent(4), Now::Prepared));
    }

    #[test]
    fn free_preparation_and_free_faults_are_no_exception() {
        let free = Costs {
            copy_ahead: 0,
            map_fault: 0,
            ..Costs::default()
        };
        assert!(!free.copy_pays(0, Now::Prepared));
        assert!(free.copy_pays(ALWAYS, Now::Bare));
        assert!(!free.map_pays(percent(80), Now::Undecided));
        assert!(
            free.map_pays(ALWAYS, Now::Bare),
            "reads still count for prefetching"
        );
    }
}
