//! What the pages of test pools hold, known to instances and tests alike, and packs made of it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rouse_pool::PoolSource;
use rouse_pool::codec::Codecs;
use rouse_pool::key::{DomainKeys, NodeKey};
use rouse_pool::packs::PackDir;
use rouse_snapshot::page_map::{
    Chunk, Class, CodecId, Domain, PACK_ALIGN, PackId, PageMap, Piece, PieceKind,
};

pub const PAGE: usize = 4096;

/// The pack with the hot pieces, and the other one.
pub const HOT_PACK: PackId = PackId(1);
pub const COLD_PACK: PackId = PackId(2);

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Pages of the piece that begins at a page.
fn piece_len(seed: u64, first: u64, pages: u64) -> u64 {
    (mix(seed ^ (first << 20)) % 16 + 1).min(pages - first)
}

/// The pieces of a pool: (first page, pages).
pub fn pieces(seed: u64, pages: u64) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    let mut first = 0;
    while first < pages {
        let len = piece_len(seed, first, pages);
        all.push((first, len));
        first += len;
    }
    all
}

/// What kind of contents 64 pages have: mostly such that each page is unlike any other.
fn kind(seed: u64, page: u64) -> u64 {
    mix(seed ^ (page / 64)) % 8
}

/// Fills `out` with the contents of a page. Never all zeros, except for some kinds.
pub fn page(seed: u64, page: u64, out: &mut [u8]) {
    match kind(seed, page) {
        0 => out.fill(0),
        1 => out.fill(0xaa),
        _ => {
            // Compressible, and different in each page and pool.
            let mut word = mix(seed.wrapping_mul(0x9e37_79b9).wrapping_add(page)) | 1;
            for (i, chunk) in out.chunks_mut(8).enumerate() {
                if i % 4 == 0 {
                    word = mix(word + 1) | 1;
                }
                chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            }
        }
    }
}

/// Whether a page is in the working set of test pools.
pub fn is_hot(page: u64) -> bool {
    page % 256 < 64
}

/// Where the files of a pool are, and what its manifest would say of them.
pub struct Stored {
    pub page_map: PathBuf,
    pub packs: PackDir,
    pub digest: [u8; 32],
    keys: DomainKeys,
}

impl Stored {
    /// Opens what there is.
    pub fn open(&self) -> PoolSource {
        let packs = [HOT_PACK, COLD_PACK].into_iter().filter_map(|pack| {
            let path = self.packs.path_of(pack);
            let mut direct = OpenOptions::new();
            direct.read(true).custom_flags(libc::O_DIRECT);
            let file = direct.open(&path).or_else(|_| File::open(&path));
            Some((pack, file.ok()?))
        });
        PoolSource {
            digest: self.digest,
            keys: self.keys,
            page_map: File::open(&self.page_map).unwrap(),
            dictionaries: Vec::new(),
            packs: packs.collect(),
        }
    }
}

/// Writes page map and packs of a pool, and returns where they are.
pub fn store(root: &Path, seed: u64, pages: u64) -> Stored {
    let keys = NodeKey::new([7; 32]).domain_keys("tenant");
    let codecs = Codecs::software();
    let dir = PackDir::open(root);
    fs::create_dir_all(dir.path()).unwrap();
    let mut packs = [vec![0; PACK_ALIGN as usize], vec![0; PACK_ALIGN as usize]];
    let mut map = Vec::new();
    for (index, (first_page, len)) in pieces(seed, pages).into_iter().enumerate() {
        let mut plain = vec![0; len as usize * PAGE];
        for (i, out) in plain.chunks_mut(PAGE).enumerate() {
            page(seed, first_page + i as u64, out);
        }
        let class = match is_hot(first_page) {
            true => Class::Hot,
            false => Class::Cold,
        };
        let kind = if plain.iter().all(|byte| *byte == 0) {
            PieceKind::Zero
        } else if plain.iter().all(|byte| *byte == plain[0]) {
            PieceKind::Repeated(plain[0])
        } else {
            let mut codec = CodecId::ALL[index % 4];
            let mut stored = Vec::new();
            codecs.get(codec).encode(&plain, None, &mut stored).unwrap();
            if stored.len() >= plain.len() {
                codec = CodecId::None;
                stored.clone_from(&plain);
            }
            let (pack, file) = match class {
                Class::Hot => (HOT_PACK, &mut packs[0]),
                Class::Cold => (COLD_PACK, &mut packs[1]),
            };
            let offset = file.len() as u64;
            file.extend_from_slice(&stored);
            PieceKind::Chunk(Chunk {
                id: keys.id(Domain::Tenant, &plain),
                domain: Domain::Tenant,
                pack,
                offset,
                stored_len: stored.len() as u32,
                codec,
                dictionary: None,
            })
        };
        map.push(Piece {
            first_page,
            pages: len as u32,
            class,
            kind,
        });
    }
    let end = (packs[0].len() as u64).next_multiple_of(PACK_ALIGN);
    packs[0].resize(end as usize, 0);
    for (pack, bytes) in [HOT_PACK, COLD_PACK].into_iter().zip(&packs) {
        let mut file = fs::File::create(dir.path_of(pack)).unwrap();
        file.write_all(bytes).unwrap();
    }
    let hot = (end > PACK_ALIGN).then_some((HOT_PACK, PACK_ALIGN..end));
    let bytes = PageMap::new(map, hot).unwrap().encode();
    let page_map = root.join("page-map");
    fs::write(&page_map, &bytes).unwrap();
    Stored {
        page_map,
        packs: dir,
        digest: PageMap::digest(&bytes).unwrap(),
        keys,
    }
}
