//! What a trained dictionary would save of the snapshots of a store, and what it costs to decode with it.
//!
//!     cargo run --release -p rouse-pool --example dictionaries -- STATE TRAINED-ON TESTED-ON...
//!
//! Names are those of snapshots, or parts of them.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use rouse_pool::codec::{Codec, Dictionary, Lz4, Zstd, train};
use rouse_pool::key::NodeKey;
use rouse_pool::snapshot_store::SnapshotStore;
use rouse_snapshot::page_map::PieceKind;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [state, trained_on, tested_on @ ..] = &arguments[..] else {
        return Err("usage: dictionaries STATE TRAINED-ON TESTED-ON...".into());
    };
    let state = Path::new(state);
    let key = NodeKey::load(&state.join("node.key"))?;
    let store = SnapshotStore::open(state, key)?;
    let names = store.list()?;
    let mut samples = Vec::new();
    for name in names.iter().filter(|name| name.contains(trained_on)) {
        samples.extend(rouse_pool::codec::samples(
            &store.open_snapshot(name)?.load()?,
        )?);
    }
    let begin = Instant::now();
    let dictionary = train(&samples)?;
    println!(
        "dictionary: {} bytes of {} samples, {:.0} ms",
        dictionary.bytes().len(),
        samples.len(),
        begin.elapsed().as_secs_f64() * 1e3
    );
    for name in &names {
        if !tested_on.iter().any(|part| name.contains(part)) {
            continue;
        }
        let pieces = pieces(&store, name)?;
        let plain: usize = pieces.iter().map(Vec::len).sum();
        println!("{name}: {} pieces, {plain} bytes", pieces.len());
        let zstd = Zstd::default();
        measure("lz4", &Lz4, None, &pieces)?;
        let alone = measure("zstd", &zstd, None, &pieces)?;
        let helped = measure("zstd + dictionary", &zstd, Some(&dictionary), &pieces)?;
        let smaller: usize = alone.iter().zip(&helped).map(|(a, b)| a.min(b)).sum();
        println!("  the smaller of both {smaller:>8} bytes");
    }
    Ok(())
}

/// The plain bytes of all pieces that are not one byte over and over.
fn pieces(store: &SnapshotStore, name: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let stored = store.open_snapshot(name)?;
    let pool = stored.load()?;
    let mut found = Vec::new();
    for piece in stored.map.pieces() {
        if matches!(piece.kind, PieceKind::Chunk(_)) {
            let mut plain = vec![0; piece.pages as usize * 4096];
            pool.read(piece.first_page, &mut plain)?;
            found.push(plain);
        }
    }
    Ok(found)
}

fn measure(
    name: &str,
    codec: &dyn Codec,
    dictionary: Option<&Dictionary>,
    pieces: &[Vec<u8>],
) -> Result<Vec<usize>, Failure> {
    let mut encoded = Vec::new();
    for plain in pieces {
        let mut stored = Vec::new();
        codec.encode(plain, dictionary, &mut stored)?;
        encoded.push(stored);
    }
    let (plain, stored) = (
        pieces.iter().map(Vec::len).sum::<usize>(),
        encoded.iter().map(Vec::len).sum::<usize>(),
    );
    let mut best = f64::MAX;
    let mut out = vec![0; 1 << 16];
    for _ in 0..5 {
        let begin = Instant::now();
        for (plain, stored) in pieces.iter().zip(&encoded) {
            codec.decode(stored, dictionary, &mut out[..plain.len()])?;
            black_box(&out);
        }
        best = best.min(begin.elapsed().as_secs_f64());
    }
    println!(
        "  {name:18} {stored:>9} bytes  ratio {:5.2}  {:5.0} MB/s decoded",
        plain as f64 / stored as f64,
        plain as f64 / best / 1e6
    );
    Ok(encoded.iter().map(Vec::len).collect())
}
