//! Any bytes as the stored bytes of a piece, for each codec: they are refused, or they are the right ones.

#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use rouse_pool::chunk::Decoder;
use rouse_pool::codec::{Codecs, Dictionaries, Dictionary, train};
use rouse_pool::key::NodeKey;
use rouse_snapshot::page_map::{Chunk, ChunkId, Class, CodecId, Domain, PackId, Piece, PieceKind};

/// Content only, without what zstd's training adds: that works as well.
static CONTENT: LazyLock<Arc<Dictionary>> = LazyLock::new(|| {
    let bytes = (0..4096_u32)
        .flat_map(|at| (at / 7).to_le_bytes())
        .collect();
    Arc::new(Dictionary::new(bytes).expect("these bytes are a dictionary"))
});

/// As snapshots have them: with tables for what the samples are made of.
static TRAINED: LazyLock<Arc<Dictionary>> = LazyLock::new(|| {
    let sample = |seed: u64| -> Vec<u8> {
        let words = (0..1024_u64).map(|at| (seed * 31 + at * at / 7) % 64);
        words
            .flat_map(|word| format!("member {word:02x} ").into_bytes())
            .collect()
    };
    let samples: Vec<_> = (0..64).map(sample).collect();
    Arc::new(train(&samples).expect("these samples have much in common"))
});

static DECODER: LazyLock<Decoder> = LazyLock::new(|| {
    let dictionaries = Dictionaries::from_iter([CONTENT.clone(), TRAINED.clone()]);
    Decoder::new(NodeKey::new([7; 32]).domain_keys("t"), dictionaries)
});

fuzz_target!(|data: &[u8]| {
    let [how, pages, stored @ ..] = data else {
        return;
    };
    let codec = CodecId::ALL[usize::from(how % 4)];
    let dictionary = match how & 12 {
        4 => Some(&**CONTENT),
        8 => Some(&**TRAINED),
        _ => None,
    };
    let pages = u32::from(pages % 16) + 1;
    let mut plain = vec![0; pages as usize * 4096];

    // What decodes at all, decodes to the same bytes after it was encoded again.
    let codecs = Codecs::software();
    if codecs
        .get(codec)
        .decode(stored, dictionary, &mut plain)
        .is_ok()
    {
        let (mut again, mut decoded) = (Vec::new(), vec![1; plain.len()]);
        let codec = codecs.get(codec);
        codec
            .encode(&plain, dictionary, &mut again)
            .expect("anything can be encoded");
        codec
            .decode(&again, dictionary, &mut decoded)
            .expect("what was encoded can be decoded");
        assert!(decoded == plain);
    }
    let piece = Piece {
        first_page: 0,
        pages,
        class: Class::Hot,
        kind: PieceKind::Chunk(Chunk {
            id: ChunkId([9; 32]),
            domain: Domain::Tenant,
            pack: PackId(1),
            offset: 4096,
            stored_len: stored.len() as u32,
            codec,
            dictionary: dictionary.map(Dictionary::id),
        }),
    };
    let decoded = DECODER.decode(&piece, stored, &mut plain);
    assert!(decoded.is_err(), "nobody can guess a digest");
});
