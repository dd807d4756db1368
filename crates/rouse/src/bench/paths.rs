//! The ways to answer a request that are compared.

use serde::Serialize;

/// A way to answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BenchPath {
    /// A fork of a warmed interpreter, without rouse.
    Floor,
    /// An idle instance, used again.
    Warm,
    /// A clone of the parked template.
    Fork,
    /// Restored ahead, resumed by the request.
    Parked,
    /// Put back to the snapshot after an earlier request.
    Rewind,
    /// From the snapshot.
    Restore,
    /// From nothing.
    Cold,
}

impl BenchPath {
    /// Those of `rouse bench boot`, in the order of the report.
    pub const ALL: [Self; 6] = [
        Self::Floor,
        Self::Warm,
        Self::Fork,
        Self::Parked,
        Self::Restore,
        Self::Cold,
    ];

    /// As in the report and in `x-rouse-boot`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Warm => "warm",
            Self::Fork => "fork",
            Self::Parked => "parked",
            Self::Rewind => "rewind",
            Self::Restore => "restore",
            Self::Cold => "cold",
        }
    }
}
