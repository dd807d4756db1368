//! The numbers that all decisions are made of.

use serde::{Deserialize, Serialize};

/// What a page, a read or a codec costs on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostInputs {
    /// To map a page of the pool when it is read, in a batch, ns a page (`MADV_POPULATE_READ`).
    pub map_ahead_ns: f64,
    /// To map it by a fault, ns.
    pub map_fault_ns: f64,
    /// To copy a page ahead, in a batch, ns a page (`MADV_POPULATE_WRITE`).
    pub copy_ahead_ns: f64,
    /// To copy it by a fault, ns.
    pub copy_fault_ns: f64,
    /// To copy a page ahead that is mapped already, in a batch, ns a page.
    pub recopy_ns: f64,
    /// To map a page by a fault of somebody who has done something else meanwhile, as functions do, ns.
    pub lone_map_fault_ns: f64,
    /// To copy it by such a fault, ns.
    pub lone_copy_fault_ns: f64,
    /// To have one mapping more, and to take it down again, ns.
    pub mapping_ns: f64,
    /// To read a page of a pool to where nothing is yet, ns a page (`preadv`).
    pub read_ns: f64,
    /// To have an absent page brought by a handler in another process, without what reading and decoding take, ns.
    pub handler_fault_ns: f64,
    /// To put a page into a pool, ns.
    pub fill_ns: f64,
    /// To copy memory, bytes/s.
    pub copy_bytes_per_s: f64,
    /// Of each codec.
    pub codecs: Vec<CodecCost>,
    /// Reads from the disk of the store.
    pub disk: Transfer,
    /// Reads from the far tier, where there is one.
    pub far: Option<Transfer>,
}

/// What a codec takes for a page of ordinary memory contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecCost {
    /// `none`, `lz4`, `zstd` or `deflate`.
    pub codec: String,
    /// To make a page smaller, ns.
    pub encode_ns: f64,
    /// To get it back and verify it, ns.
    pub decode_ns: f64,
}

/// How a tier is read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Of one small read, ns.
    pub latency_ns: f64,
    /// Of large reads, bytes/s.
    pub bytes_per_s: f64,
}

impl Transfer {
    /// One read of so many bytes, ns.
    pub fn read_ns(&self, bytes: f64) -> f64 {
        self.latency_ns + bytes * 1e9 / self.bytes_per_s.max(1.0)
    }

    fn better(self, other: Self) -> Self {
        Self {
            latency_ns: self.latency_ns.min(other.latency_ns),
            bytes_per_s: self.bytes_per_s.max(other.bytes_per_s),
        }
    }
}

impl CostInputs {
    /// What a codec takes; the slowest that is known for one that is not.
    pub fn decode_ns(&self, codec: &str) -> f64 {
        let known = self.codecs.iter().find(|cost| cost.codec == codec);
        let slowest = || self.codecs.iter().map(|cost| cost.decode_ns);
        known.map_or_else(|| slowest().fold(0.0, f64::max), |cost| cost.decode_ns)
    }

    /// What the working set's pages take to decode: their codec was chosen for that.
    pub fn hot_decode_ns(&self) -> f64 {
        self.decode_ns("lz4").min(self.decode_ns("zstd"))
    }

    /// Of each number the better one of two measurements of one host.
    #[must_use]
    pub fn better(&self, other: &Self) -> Self {
        let codecs = other.codecs.iter().map(|codec| {
            let same = self.codecs.iter().find(|one| one.codec == codec.codec);
            same.map_or_else(
                || codec.clone(),
                |same| CodecCost {
                    codec: codec.codec.clone(),
                    encode_ns: codec.encode_ns.min(same.encode_ns),
                    decode_ns: codec.decode_ns.min(same.decode_ns),
                },
            )
        });
        Self {
            map_ahead_ns: self.map_ahead_ns.min(other.map_ahead_ns),
            map_fault_ns: self.map_fault_ns.min(other.map_fault_ns),
            copy_ahead_ns: self.copy_ahead_ns.min(other.copy_ahead_ns),
            copy_fault_ns: self.copy_fault_ns.min(other.copy_fault_ns),
            recopy_ns: self.recopy_ns.min(other.recopy_ns),
            lone_map_fault_ns: self.lone_map_fault_ns.min(other.lone_map_fault_ns),
            lone_copy_fault_ns: self.lone_copy_fault_ns.min(other.lone_copy_fault_ns),
            mapping_ns: self.mapping_ns.min(other.mapping_ns),
            read_ns: self.read_ns.min(other.read_ns),
            handler_fault_ns: self.handler_fault_ns.min(other.handler_fault_ns),
            fill_ns: self.fill_ns.min(other.fill_ns),
            copy_bytes_per_s: self.copy_bytes_per_s.max(other.copy_bytes_per_s),
            codecs: codecs.collect(),
            disk: self.disk.better(other.disk),
            far: match (self.far, other.far) {
                (Some(one), Some(two)) => Some(one.better(two)),
                (one, two) => one.or(two),
            },
        }
    }

    /// Are all numbers such that can have been measured?
    pub fn is_plausible(&self) -> bool {
        let transfers = [Some(self.disk), self.far];
        let transfers = transfers.into_iter().flatten();
        let codecs = self.codecs.iter();
        [
            self.map_ahead_ns,
            self.map_fault_ns,
            self.copy_ahead_ns,
            self.copy_fault_ns,
            self.recopy_ns,
            self.lone_map_fault_ns,
            self.lone_copy_fault_ns,
            self.mapping_ns,
            self.read_ns,
            self.handler_fault_ns,
            self.fill_ns,
            self.copy_bytes_per_s,
        ]
        .into_iter()
        .chain(codecs.flat_map(|codec| [codec.encode_ns, codec.decode_ns]))
        .chain(transfers.flat_map(|transfer| [transfer.latency_ns, transfer.bytes_per_s]))
        .all(|number| number.is_finite() && number >= 0.0)
    }
}

impl Default for CostInputs {
    /// For a host on which nothing could be measured: the two cores where this was first built.
    fn default() -> Self {
        let codec = |codec: &str, encode_ns, decode_ns| CodecCost {
            codec: codec.into(),
            encode_ns,
            decode_ns,
        };
        Self {
            map_ahead_ns: 270.0,
            map_fault_ns: 1000.0,
            copy_ahead_ns: 1200.0,
            copy_fault_ns: 1600.0,
            recopy_ns: 2200.0,
            lone_map_fault_ns: 1000.0,
            lone_copy_fault_ns: 2400.0,
            mapping_ns: 1300.0,
            read_ns: 1000.0,
            handler_fault_ns: 15_000.0,
            fill_ns: 1700.0,
            copy_bytes_per_s: 8e9,
            codecs: vec![
                codec("none", 0.0, 1000.0),
                codec("lz4", 6000.0, 2500.0),
                codec("zstd", 20_000.0, 8000.0),
                codec("deflate", 60_000.0, 16_000.0),
            ],
            disk: Transfer {
                latency_ns: 100_000.0,
                bytes_per_s: 2e9,
            },
            far: None,
        }
    }
}
