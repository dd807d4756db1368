//! Which codec a piece gets: the one with which it is expected to cost least.

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::page_map::{Class, CodecId};

use super::CostInputs;
use super::measure::codec_name;
use crate::codec::{Beside, Choice, Coded};

/// A cold piece is read once in so many boots.
const COLD_READS: f64 = 0.05;
/// What it is worth to keep a byte less, in ns of a boot: a piece of 64 KiB that is halved may take 16 us longer.
const BYTE_NS: f64 = 0.5;
/// How much longer decoding takes beside a template's pages: a piece of the template is decoded first.
const BESIDE_TEMPLATE: f64 = 2.0;

/// Chooses by measured costs: reading and decoding, as often as the piece is read, and the space that it takes.
#[derive(Debug, Clone)]
pub struct CostChoice(CostInputs);

impl CostChoice {
    /// For a host.
    pub fn new(inputs: CostInputs) -> Self {
        Self(inputs)
    }

    /// What a piece is expected to cost, ns.
    fn cost(&self, class: Class, plain_len: usize, coded: &Coded) -> f64 {
        let reads = match class {
            Class::Hot => 1.0,
            Class::Cold => COLD_READS,
        };
        let pages = plain_len as f64 / PAGE_SIZE as f64;
        // Pieces are read many at a time: their latencies overlap, their bytes do not.
        let stored_len = coded.len as f64;
        let read = stored_len * 1e9 / self.0.disk.bytes_per_s.max(1.0);
        let longer = match coded.beside {
            Beside::Nothing | Beside::Dictionary => 1.0,
            Beside::Template => BESIDE_TEMPLATE,
        };
        let decode = longer * pages * self.0.decode_ns(codec_name(coded.codec));
        let bring = match class {
            // One part of a working set is read while another is decoded.
            Class::Hot => read.max(decode),
            Class::Cold => read + decode,
        };
        reads * bring + stored_len * BYTE_NS
    }
}

impl Choice for CostChoice {
    fn candidates(&self, class: Class, _: usize) -> &[CodecId] {
        match class {
            Class::Hot => &[CodecId::Lz4, CodecId::Zstd],
            Class::Cold => &[CodecId::Zstd],
        }
    }

    fn choose(&self, class: Class, plain_len: usize, encoded: &[Coded]) -> Option<usize> {
        let cost = |coded: &Coded| self.cost(class, plain_len, coded);
        let as_it_is = cost(&Coded::alone(CodecId::None, plain_len));
        let costs = encoded.iter().map(cost).enumerate();
        let cheapest = costs.min_by(|(_, a), (_, b)| a.total_cmp(b))?;
        (cheapest.1 < as_it_is).then_some(cheapest.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cost::Transfer;

    fn with_disk(bytes_per_s: f64) -> CostChoice {
        let disk = Transfer {
            latency_ns: 50_000.0,
            bytes_per_s,
        };
        CostChoice::new(CostInputs {
            disk,
            ..CostInputs::default()
        })
    }

    proptest! {
        #[test]
        fn a_smaller_result_of_the_same_codec_is_never_worse(len in 1..65_536_usize, less in 0..65_536_usize) {
            let choice = with_disk(1e9);
            let smaller = len.saturating_sub(less);
            for class in [Class::Hot, Class::Cold] {
                let chosen = |len| choice.choose(class, 65_536, &[Coded::alone(CodecId::Lz4, len)]);
                if chosen(len).is_some() {
                    prop_assert!(chosen(smaller).is_some());
                }
            }
        }

        #[test]
        fn a_slower_disk_never_wants_more_bytes(
            lz4 in 1..65_536_usize, zstd in 1..65_536_usize, fast in 1e8..1e10_f64, factor in 1.0..100.0_f64,
        ) {
            let encoded = [Coded::alone(CodecId::Lz4, lz4), Coded::alone(CodecId::Zstd, zstd)];
            let len = |chosen: Option<usize>| chosen.map_or(65_536, |index| encoded[index].len);
            for class in [Class::Hot, Class::Cold] {
                let (quick, slow) = (with_disk(fast), with_disk(fast / factor));
                let before = len(quick.choose(class, 65_536, &encoded));
                prop_assert!(len(slow.choose(class, 65_536, &encoded)) <= before);
            }
        }
    }

    #[test]
    fn what_does_not_shrink_stays_as_it_is() {
        let choice = with_disk(2e9);
        assert_eq!(choice.choose(Class::Hot, 65_536, &[]), None);
        let hardly = [Coded::alone(CodecId::Lz4, 65_000)];
        assert_eq!(choice.choose(Class::Hot, 65_536, &hardly), None);
        let much = [Coded::alone(CodecId::Zstd, 6_000)];
        assert_eq!(choice.choose(Class::Cold, 65_536, &much), Some(0));
    }

    #[test]
    fn what_is_read_elsewhere_first_has_to_be_smaller() {
        let choice = with_disk(2e9);
        let choose = |template| {
            let coded = |beside, len| Coded {
                codec: CodecId::Zstd,
                beside,
                len,
            };
            let all = [
                coded(Beside::Nothing, 20_000),
                coded(Beside::Dictionary, 18_000),
                coded(Beside::Template, template),
            ];
            choice.choose(Class::Cold, 65_536, &all)
        };
        assert_eq!(choose(2_000), Some(2));
        assert_eq!(choose(17_999), Some(1));
    }
}
