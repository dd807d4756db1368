//! Any bytes as a page map, with its checksums made right: what is accepted gives the same bytes
//! again, and answers for each of its pages.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rouse_snapshot::page_map::PageMap;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if bytes.len() >= 120 {
        let body = blake3::hash(&bytes[120..]);
        bytes[56..88].copy_from_slice(body.as_bytes());
        let header = blake3::hash(&bytes[..88]);
        bytes[88..120].copy_from_slice(header.as_bytes());
    }
    if let Ok(map) = PageMap::decode(&bytes) {
        assert!(map.encode() == bytes);
        for page in [0, map.pages() / 2, map.pages().saturating_sub(1)] {
            if page < map.pages() {
                let (index, piece) = map.piece_of(page);
                assert!(piece.range().contains(&page));
                assert_eq!(map.pieces()[index], *piece);
            }
        }
        if let Some((pack, extent)) = map.hot_extent() {
            assert!(map.packs().contains(&pack) && extent.start < extent.end);
        }
    }
});
