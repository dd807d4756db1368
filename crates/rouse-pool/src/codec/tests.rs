#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;

const LEN: usize = 65536;

/// Bytes without any pattern.
fn noise(mut state: u64, len: usize) -> Vec<u8> {
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Something like the heap of an interpreter: words that repeat with small changes.
fn heap(seed: u64, len: usize) -> Vec<u8> {
    (0..len / 8)
        .flat_map(|at| (0x7f00_1234_0000 + (seed + at as u64 % 61) * 48).to_le_bytes())
        .collect()
}

fn encode(codec: &dyn Codec, plain: &[u8], dictionary: Option<&Dictionary>) -> Vec<u8> {
    let mut out = vec![1, 2, 3];
    codec.encode(plain, dictionary, &mut out).unwrap();
    out
}

#[test]
fn each_codec_gives_back_what_it_was_given() {
    let codecs = Codecs::software();
    for id in CodecId::ALL {
        let codec = codecs.get(id);
        assert_eq!(codec.id(), id);
        for plain in [
            noise(1, LEN),
            heap(1, LEN),
            vec![0; LEN],
            noise(2, 4096),
            heap(3, 4096),
        ] {
            let stored = encode(codec, &plain, None);
            let mut out = vec![9; plain.len()];
            codec.decode(&stored, None, &mut out).unwrap();
            assert!(out == plain, "{id:?}");
            // One byte too many or too few is another length.
            for len in [plain.len() - 1, plain.len() + 1] {
                assert!(
                    codec.decode(&stored, None, &mut vec![0; len]).is_err(),
                    "{id:?}"
                );
            }
            assert!(
                codec
                    .decode(&stored[..stored.len() - 1], None, &mut out)
                    .is_err()
            );
        }
        if id != CodecId::None {
            assert!(encode(codec, &heap(1, LEN), None).len() < LEN / 4, "{id:?}");
        }
    }
}

#[test]
fn deflate_looks_back_no_further_than_4_kib() {
    let period = |len: usize| {
        noise(5, len)
            .into_iter()
            .cycle()
            .take(LEN)
            .collect::<Vec<_>>()
    };
    let codec = Deflate::default();
    assert!(encode(&codec, &period(3000), None).len() < LEN / 4);
    // Repeats that are further apart than the window cannot be used.
    assert!(encode(&codec, &period(4097), None).len() > LEN * 9 / 10);
    assert!(encode(&Zstd::default(), &period(4097), None).len() < LEN / 4);
}

#[test]
fn a_dictionary_makes_small_pieces_smaller_and_is_needed_to_read_them() {
    // Each sample has a part of what all have in common.
    let common = noise(7, 40_000);
    let samples: Vec<Vec<u8>> = (0..200)
        .map(|at| {
            [
                &common[at * 150..at * 150 + 8000],
                &noise(at as u64, 192)[..],
            ]
            .concat()
        })
        .collect();
    let dictionary = train(&samples).unwrap();
    let codec = Zstd::default();
    let plain = [&common[777..4777], &noise(1, 96)[..]].concat();
    let with = encode(&codec, &plain, Some(&dictionary));
    assert!(with.len() < encode(&codec, &plain, None).len() * 3 / 4);
    let mut out = vec![0; plain.len()];
    codec.decode(&with, Some(&dictionary), &mut out).unwrap();
    assert!(out == plain);
    assert!(codec.decode(&with, None, &mut out).is_err());
    assert_eq!(
        Dictionary::new(dictionary.bytes().to_vec()).unwrap().id(),
        dictionary.id()
    );
}

#[test]
fn a_dictionary_needs_samples() {
    assert!(matches!(
        train(&[[1_u8; 100]; 3]),
        Err(TrainError::TooFew { found: 3 })
    ));
    assert!(Dictionary::new(Vec::new()).is_err());
}

#[test]
fn the_default_choice_stores_what_hardly_shrinks_as_it_is() {
    use rouse_snapshot::page_map::Class::{Cold, Hot};
    let choose = |class, len| DefaultChoice.choose(class, 8000, &[Coded::alone(CodecId::Lz4, len)]);
    assert_eq!(choose(Hot, 7000), Some(0));
    assert_eq!(choose(Hot, 7001), None);
    assert_eq!(DefaultChoice.choose(Cold, 8000, &[]), None);
    assert_eq!(DefaultChoice.candidates(Cold, 8000), [CodecId::Zstd]);
}

#[test]
fn an_engine_can_take_the_place_of_a_codec() {
    #[derive(Debug)]
    struct Engine(Deflate);
    impl Codec for Engine {
        fn id(&self) -> CodecId {
            self.0.id()
        }
        fn encode(
            &self,
            plain: &[u8],
            d: Option<&Dictionary>,
            out: &mut Vec<u8>,
        ) -> io::Result<()> {
            self.0.encode(plain, d, out)
        }
        fn decode(&self, _: &[u8], _: Option<&Dictionary>, _: &mut [u8]) -> io::Result<()> {
            Err(io::Error::other("the engine was asked"))
        }
    }
    let codecs = Codecs::software().with(Arc::new(Engine(Deflate::default())));
    let error = codecs
        .get(CodecId::Deflate)
        .decode(&[], None, &mut [])
        .unwrap_err();
    assert_eq!(error.to_string(), "the engine was asked");
    codecs
        .get(CodecId::None)
        .decode(&[], None, &mut [])
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_stored_bytes_are_survived(stored: Vec<u8>, len in 0_usize..20_000) {
        let codecs = Codecs::software();
        for id in CodecId::ALL {
            let _ = codecs.get(id).decode(&stored, None, &mut vec![0; len]);
        }
    }

    #[test]
    fn changed_bytes_are_survived(
        seed: u64,
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4),
    ) {
        let codecs = Codecs::software();
        for id in CodecId::ALL {
            let plain = heap(seed % 1000, 8192);
            let mut stored = encode(codecs.get(id), &plain, None);
            for (at, value) in &changes {
                let at = at.index(stored.len());
                stored[at] = *value;
            }
            let _ = codecs.get(id).decode(&stored, None, &mut vec![0; plain.len()]);
        }
    }
}
