//! The memory of a VMM: where its pages come from, and which are there.

use std::ops::Range;

use rouse_snapshot::model::PAGE_SIZE;
use serde::Deserialize;

use super::HandshakeError;

/// What Firecracker sends of a region.
///
/// `page_size_kib` is an older name of `page_size`, and holds bytes as well.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct SentRegion {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

/// A run of guest memory, valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where it begins in the VMM.
    pub address: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Where it begins in the memory file, bytes.
    pub offset: u64,
    /// Bytes that are filled at a time: 4096, or a huge page.
    pub page_size: u64,
}

impl Region {
    fn end(&self) -> u64 {
        self.address + self.size
    }
}

const HUGE_PAGE: u64 = 2 << 20;
const MOST_REGIONS: usize = 64;
/// What user space can map.
const ADDRESS_END: u64 = 0x7fff_ffff_f000;

/// All regions of a VMM: sorted by address, disjoint, whole pages, inside of the memory file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regions(Vec<Region>);

impl Regions {
    pub(super) fn new(sent: &[SentRegion], pages: u64) -> Result<Self, HandshakeError> {
        let mut regions = Vec::with_capacity(sent.len().min(MOST_REGIONS));
        for (index, region) in sent.iter().enumerate() {
            let bad = |why| HandshakeError::Region { index, why };
            if index == MOST_REGIONS {
                return Err(bad("is one too many"));
            }
            let page_size = match (region.page_size, region.page_size_kib) {
                (Some(size), _) | (None, Some(size)) => size,
                (None, None) => return Err(bad("has no page size")),
            };
            if page_size != PAGE_SIZE && page_size != HUGE_PAGE {
                return Err(bad("has pages of a size that there is not"));
            }
            let aligned = |value: u64| value.is_multiple_of(page_size);
            if region.size == 0 || !aligned(region.size) || !aligned(region.base_host_virt_addr) {
                return Err(bad("is not of whole pages"));
            }
            // In the file, holes between regions are left out, so that only small pages are sure.
            if !region.offset.is_multiple_of(PAGE_SIZE) {
                return Err(bad("does not begin at a page of the memory file"));
            }
            let end = region.base_host_virt_addr.checked_add(region.size);
            if end.is_none_or(|end| end > ADDRESS_END) {
                return Err(bad("reaches beyond what can be mapped"));
            }
            let end = region.offset.checked_add(region.size);
            if end.is_none_or(|end| end > pages * PAGE_SIZE) {
                return Err(bad("reaches beyond the end of the memory file"));
            }
            regions.push(Region {
                address: region.base_host_virt_addr,
                size: region.size,
                offset: region.offset,
                page_size,
            });
        }
        regions.sort_by_key(|region| region.address);
        let overlap = regions
            .array_windows()
            .position(|[a, b]| a.end() > b.address);
        match overlap {
            Some(index) => Err(HandshakeError::Region {
                index,
                why: "overlaps another one",
            }),
            None if regions.is_empty() => Err(HandshakeError::Region {
                index: 0,
                why: "is missing",
            }),
            None => Ok(Self(regions)),
        }
    }

    /// In the order of addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }
}

/// What is known of a page of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// It was not filled yet: what the memory file has belongs there.
    Absent,
    /// It was filled.
    Present,
    /// The guest has given it back: zeros belong there.
    Removed,
}

/// All pages of a VMM.
#[derive(Debug)]
pub struct Pages {
    regions: Regions,
    states: Vec<Vec<PageState>>,
}

impl Pages {
    /// None is filled.
    pub fn new(regions: Regions) -> Self {
        let states = regions
            .iter()
            .map(|region| vec![PageState::Absent; (region.size / region.page_size) as usize])
            .collect();
        Self { regions, states }
    }

    /// The regions.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// The page at an address: which region, and its first address; `None` outside.
    pub fn find(&self, address: u64) -> Option<(&Region, u64)> {
        let (region, page) = self.place(address)?;
        let region = &self.regions.0[region];
        Some((region, region.address + page as u64 * region.page_size))
    }

    /// What is known of the page at an address; `None` outside.
    pub fn state(&self, address: u64) -> Option<PageState> {
        let (region, page) = self.place(address)?;
        Some(self.states[region][page])
    }

    /// Pages from `address` on were filled; all lie in one region.
    pub fn filled(&mut self, address: u64, bytes: u64) {
        let Some((region, page)) = self.place(address) else {
            return;
        };
        let count = (bytes / self.regions.0[region].page_size) as usize;
        let states = self.states[region].iter_mut().skip(page).take(count);
        states.for_each(|state| *state = PageState::Present);
    }

    /// The guest has given memory back. What is outside of the regions does not matter; pages of which only a part was given
    /// back stay, as they do in the kernel.
    pub fn removed(&mut self, start: u64, end: u64) {
        for (region, states) in self.regions.0.iter().zip(&mut self.states) {
            let from = start.max(region.address).saturating_sub(region.address);
            let to = end.min(region.end()).saturating_sub(region.address);
            let pages = from.div_ceil(region.page_size)..to / region.page_size;
            if let Some(states) = states.get_mut(pages.start as usize..pages.end as usize) {
                states.fill(PageState::Removed);
            }
        }
    }

    /// Addresses at which pages of the memory file belong, in runs.
    pub fn addresses_of(&self, file: Range<u64>) -> Vec<(u64, Range<u64>)> {
        let clip = |region: &Region| {
            let (first, pages) = (region.offset / PAGE_SIZE, region.size / PAGE_SIZE);
            let part = file.start.max(first)..file.end.min(first + pages);
            (part.start < part.end).then(|| {
                let address = region.address + (part.start - first) * PAGE_SIZE;
                (address, part)
            })
        };
        self.regions.iter().filter_map(clip).collect()
    }

    fn place(&self, address: u64) -> Option<(usize, usize)> {
        let regions = &self.regions.0;
        let index = regions.partition_point(|region| region.end() <= address);
        let region = regions
            .get(index)
            .filter(|region| region.address <= address)?;
        Some((
            index,
            ((address - region.address) / region.page_size) as usize,
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sent(json: &str) -> Result<Regions, String> {
        let sent: Vec<SentRegion> = serde_json::from_str(json).map_err(|e| e.to_string())?;
        Regions::new(&sent, 1024).map_err(|error| error.to_string())
    }

    #[test]
    fn what_firecracker_sends_is_understood() {
        let both = r#"[{"base_host_virt_addr": 1048576, "size": 8192, "offset": 0,
                        "page_size": 4096, "page_size_kib": 4096}]"#;
        let old = r#"[{"base_host_virt_addr": 1048576, "size": 8192, "offset": 0, "page_size_kib": 4096}]"#;
        assert_eq!(sent(both).unwrap(), sent(old).unwrap());
        let huge = r#"[{"base_host_virt_addr": 2097152, "size": 2097152, "offset": 4096, "page_size": 2097152}]"#;
        assert_eq!(sent(huge).unwrap().0[0].page_size, HUGE_PAGE);
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let region = |address: u64, size: u64, offset: u64, page: u64| {
            format!(
                r#"{{"base_host_virt_addr": {address}, "size": {size}, "offset": {offset}, "page_size": {page}}}"#
            )
        };
        let one = |address, size, offset, page| {
            sent(&format!("[{}]", region(address, size, offset, page)))
        };
        assert!(one(4096, 4096, 0, 4096).is_ok());
        for (result, why) in [
            (one(4096, 4096, 0, 1000), "size that there is not"),
            (one(4096, 4096, 0, 0), "size that there is not"),
            (one(4097, 4096, 0, 4096), "whole pages"),
            (one(4096, 0, 0, 4096), "whole pages"),
            (one(4096, 4096, 1, 4096), "does not begin at a page"),
            (one(ADDRESS_END, 4096, 0, 4096), "beyond what can be mapped"),
            (
                one(4096, u64::MAX - 4095, 0, 4096),
                "beyond what can be mapped",
            ),
            (one(4096, 4096, 1024 * 4096, 4096), "beyond the end"),
            (one(4096, 4096, u64::MAX - 4095, 4096), "beyond the end"),
            (sent("[]"), "is missing"),
            (
                sent(&format!(
                    "[{},{}]",
                    region(4096, 8192, 0, 4096),
                    region(8192, 4096, 0, 4096)
                )),
                "overlaps",
            ),
        ] {
            let error = result.unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        /// Against one state for each page.
        #[test]
        fn pages_are_counted_right(steps in prop::collection::vec((any::<bool>(), 0..40_u64, 0..12_u64), 0..40)) {
            let region = |address: u64, size: u64, offset: u64| Region {
                address: address * PAGE_SIZE, size: size * PAGE_SIZE, offset: offset * PAGE_SIZE, page_size: PAGE_SIZE,
            };
            let regions = Regions(vec![region(4, 8, 0), region(16, 8, 8)]);
            let mut pages = Pages::new(regions);
            let inside = |page: u64| (4..12).contains(&page) || (16..24).contains(&page);
            let mut oracle = std::collections::BTreeMap::new();
            for (fill, at, count) in steps {
                if fill {
                    // As the kernel has it: in one region.
                    let end = (at..at + count).take_while(|page| inside(*page)).last();
                    let Some(end) = end else { continue };
                    pages.filled(at * PAGE_SIZE, (end + 1 - at) * PAGE_SIZE);
                    oracle.extend((at..=end).map(|page| (page, PageState::Present)));
                } else {
                    pages.removed(at * PAGE_SIZE, (at + count) * PAGE_SIZE);
                    oracle.extend((at..at + count).filter(|page| inside(*page)).map(|page| (page, PageState::Removed)));
                }
                for page in 0..60 {
                    let known = oracle.get(&page).copied().unwrap_or(PageState::Absent);
                    let expected = inside(page).then_some(known);
                    prop_assert_eq!(pages.state(page * PAGE_SIZE + 7), expected);
                }
            }
        }

        #[test]
        fn any_text_is_answered(text in ".{0,300}") {
            drop(sent(&text));
        }
    }
}
