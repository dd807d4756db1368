//! Instances of which it is recorded in which order they touch their pages.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rouse_pool::keeper::PoolMapping;
use rouse_pool::{PoolId, TouchRecord};
use rouse_snapshot::model::PAGE_SIZE;

/// What is known of one instance.
#[derive(Debug)]
pub(crate) struct Touches {
    pub record: Arc<TouchRecord>,
    /// What is watched of it, as the snapshot has it.
    mappings: Vec<PoolMapping>,
}

impl Touches {
    /// Of an instance of which these mappings are watched; nothing yet.
    pub(super) fn of(mappings: Vec<PoolMapping>) -> io::Result<Self> {
        let record = Arc::new(TouchRecord::new()?);
        Ok(Self { record, mappings })
    }

    /// The pages that it has touched so far in the order in which it did so first: addresses of the snapshot, wherever the
    /// instance has moved them.
    pub(super) fn order(&self) -> io::Result<Vec<u64>> {
        Ok(addresses(&self.mappings, &self.record.read()?))
    }
}

/// Where pages of pools are mapped. Those that are not are left out.
fn addresses(mappings: &[PoolMapping], pages: &[(PoolId, u64)]) -> Vec<u64> {
    let starts: BTreeMap<(u64, u64), &PoolMapping> = mappings
        .iter()
        .map(|mapping| ((mapping.pool.0, mapping.pool_page), mapping))
        .collect();
    let address = |(pool, page): &(PoolId, u64)| {
        let (_, mapping) = starts.range(..=(pool.0, *page)).next_back()?;
        let inside = page.checked_sub(mapping.pool_page)?;
        let is_there = mapping.pool == *pool && inside < mapping.pages;
        is_there.then(|| mapping.address + inside * PAGE_SIZE)
    };
    pages.iter().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_pools_have_the_addresses_of_the_snapshot() {
        let mapping = |address, pool, pool_page, pages| PoolMapping {
            address,
            pages,
            pool: PoolId(pool),
            pool_page,
        };
        let mappings = [
            mapping(0x10_0000, 1, 0, 2),
            mapping(0x20_0000, 1, 4, 3),
            mapping(0x30_0000, 2, 4, 1),
        ];
        let touched = [(1, 6), (2, 4), (1, 0), (1, 2), (2, 0), (3, 4), (1, 1)];
        let touched = touched.map(|(pool, page)| (PoolId(pool), page));
        let expected = [0x20_2000, 0x30_0000, 0x10_0000, 0x10_1000];
        assert_eq!(addresses(&mappings, &touched), expected);
    }
}
