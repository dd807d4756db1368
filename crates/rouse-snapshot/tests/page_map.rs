//! Page maps: canonical, checked, and damage anywhere is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use rouse_snapshot::page_map::{
    Chunk, ChunkId, Class, CodecId, DictionaryId, Domain, FORMAT_VERSION, MAX_PIECE_PAGES, PackId,
    PageMap, PageMapError, Piece, PieceKind,
};

const GOLDEN: &[u8] = include_bytes!("golden/v1.pagemap");

fn chunk(pack: u64, offset: u64, stored_len: u32, codec: CodecId) -> Chunk {
    Chunk {
        id: ChunkId([stored_len as u8; 32]),
        domain: Domain::Tenant,
        pack: PackId(pack),
        offset,
        stored_len,
        codec,
        dictionary: None,
    }
}

fn sample() -> PageMap {
    let mut first_page = 0;
    let mut piece = |pages, class, kind| {
        first_page += u64::from(pages);
        Piece {
            first_page: first_page - u64::from(pages),
            pages,
            class,
            kind,
        }
    };
    let mut cold = chunk(2, 70_000, 100, CodecId::Zstd);
    cold.dictionary = Some(DictionaryId(77));
    cold.domain = Domain::Templates;
    let pieces = vec![
        piece(
            16,
            Class::Hot,
            PieceKind::Chunk(chunk(1, 4096, 9000, CodecId::Lz4)),
        ),
        piece(3, Class::Cold, PieceKind::Zero),
        piece(
            2,
            Class::Hot,
            PieceKind::Chunk(chunk(1, 13_096, 8192, CodecId::None)),
        ),
        piece(1, Class::Cold, PieceKind::Repeated(0xaa)),
        piece(5, Class::Cold, PieceKind::Chunk(cold)),
        piece(
            1,
            Class::Cold,
            PieceKind::Chunk(chunk(1, 24_576, 17, CodecId::Deflate)),
        ),
    ];
    PageMap::new(pieces, Some((PackId(1), 4096..24_576))).unwrap()
}

#[test]
fn the_golden_file_is_the_sample() {
    assert_eq!(FORMAT_VERSION, 1);
    assert_eq!(PageMap::decode(GOLDEN).unwrap(), sample());
    assert!(
        sample().encode() == GOLDEN,
        "the bytes of format version 1 changed"
    );
}

/// Run by hand, once for a new format version:
/// `ROUSE_WRITE_GOLDEN=1 cargo test -p rouse-snapshot --test page_map -- --ignored`
#[test]
#[ignore = "writes the golden file, when asked by ROUSE_WRITE_GOLDEN"]
fn write_the_golden_file() {
    if std::env::var_os("ROUSE_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.pagemap");
        std::fs::write(path, sample().encode()).unwrap();
    }
}

#[test]
fn a_page_is_found_in_its_piece() {
    let map = sample();
    assert_eq!(map.pages(), 28);
    for page in 0..map.pages() {
        let (index, piece) = map.piece_of(page);
        assert_eq!(map.pieces()[index], *piece);
        assert!(piece.range().contains(&page));
    }
    assert_eq!(map.packs(), [PackId(1), PackId(2)]);
    assert_eq!(map.dictionaries(), [DictionaryId(77)]);
    assert_eq!(map.hot_extent(), Some((PackId(1), 4096..24_576)));
}

#[test]
fn any_flipped_or_missing_byte_is_refused() {
    let good = sample().encode();
    let mut bytes = good.clone();
    for at in 0..bytes.len() {
        for mask in [1 << (at % 8), 0xff] {
            bytes[at] ^= mask;
            assert!(PageMap::decode(&bytes).is_err(), "byte {at}");
            bytes[at] ^= mask;
        }
        assert!(PageMap::decode(&good[..at]).is_err(), "length {at}");
    }
    bytes.push(0);
    assert!(PageMap::decode(&bytes).is_err());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |change: &dyn Fn(&mut Vec<Piece>)| {
        let mut pieces = sample().pieces().to_vec();
        change(&mut pieces);
        matches!(PageMap::new(pieces, None), Err(PageMapError::Piece { .. }))
    };
    let with_chunk = |change: &dyn Fn(&mut Chunk)| {
        refused(&|pieces| {
            let PieceKind::Chunk(chunk) = &mut pieces[0].kind else {
                unreachable!("the first piece has a chunk")
            };
            change(chunk);
        })
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|pieces| pieces[1].first_page += 1));
    assert!(refused(&|pieces| pieces[5].pages = 0));
    assert!(refused(&|pieces| pieces[5].pages = MAX_PIECE_PAGES + 1));
    assert!(refused(&|pieces| pieces[1].kind = PieceKind::Repeated(0)));
    assert!(with_chunk(&|chunk| chunk.stored_len = 0));
    assert!(with_chunk(&|chunk| chunk.stored_len = 65_536));
    assert!(with_chunk(&|chunk| chunk.codec = CodecId::None));
    assert!(with_chunk(&|chunk| chunk.offset = 4095));
    assert!(with_chunk(&|chunk| chunk.offset = u64::MAX));
    assert!(with_chunk(&|chunk| chunk.dictionary = Some(DictionaryId(1))));
}

#[test]
fn a_hot_extent_that_makes_no_sense_is_refused() {
    let pieces = sample().pieces().to_vec();
    for (pack, extent) in [
        (1, 4096..4096),
        (1, 0..8192),
        (1, 4096..8191),
        (1, 24_576..28_672),
        (2, 4096..24_576),
        (3, 4096..24_576),
        (1, 4096..1 << 40),
    ] {
        let hot = Some((PackId(pack), extent));
        assert!(
            PageMap::new(pieces.clone(), hot.clone()).is_err(),
            "{hot:?}"
        );
    }
}

fn piece() -> impl Strategy<Value = (u32, bool, PieceKind)> {
    let chunk = (
        any::<[u8; 32]>(),
        0..4_u64,
        4096..1_u64 << 40,
        0..4_usize,
        1..4096_u32,
        0..3_u64,
    );
    let kind = prop_oneof![
        Just(None),
        any::<u8>().prop_map(|byte| Some(Err(byte))),
        chunk.prop_map(|chunk| Some(Ok(chunk))),
    ];
    (1..=MAX_PIECE_PAGES, any::<bool>(), kind).prop_map(|(pages, hot, kind)| {
        let kind = match kind {
            None | Some(Err(0)) => PieceKind::Zero,
            Some(Err(byte)) => PieceKind::Repeated(byte),
            Some(Ok((id, pack, offset, codec, len, dictionary))) => {
                let codec = CodecId::ALL[codec];
                PieceKind::Chunk(Chunk {
                    id: ChunkId(id),
                    domain: if hot {
                        Domain::Tenant
                    } else {
                        Domain::Templates
                    },
                    pack: PackId(pack * 1000),
                    offset,
                    stored_len: if codec == CodecId::None {
                        pages * 4096
                    } else {
                        len
                    },
                    codec,
                    dictionary: (codec == CodecId::Zstd && dictionary > 0)
                        .then_some(DictionaryId(dictionary)),
                })
            }
        };
        (pages, hot, kind)
    })
}

fn map() -> impl Strategy<Value = PageMap> {
    prop::collection::vec(piece(), 0..40).prop_map(|pieces| {
        let mut first_page = 0;
        let pieces = pieces.into_iter().map(|(pages, hot, kind)| {
            let class = if hot { Class::Hot } else { Class::Cold };
            let piece = Piece {
                first_page,
                pages,
                class,
                kind,
            };
            first_page += u64::from(pages);
            piece
        });
        PageMap::new(pieces.collect(), None).unwrap()
    })
}

/// Makes both checksums right again.
fn sign(bytes: &mut [u8]) {
    let body = blake3::hash(&bytes[120..]);
    bytes[56..88].copy_from_slice(body.as_bytes());
    let header = blake3::hash(&bytes[..88]);
    bytes[88..120].copy_from_slice(header.as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_encoded_is_decoded(map in map()) {
        prop_assert_eq!(PageMap::decode(&map.encode()).unwrap(), map);
    }

    #[test]
    fn forged_bytes_are_refused_or_canonical(
        map in map(),
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4),
    ) {
        let mut bytes = map.encode();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        sign(&mut bytes);
        if let Ok(map) = PageMap::decode(&bytes) {
            prop_assert!(map.encode() == bytes);
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        prop_assert!(PageMap::decode(&bytes).is_err());
    }
}
