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
    /// From the snapshot.
    Restore,
    /// From nothing.
    Cold,
}

impl BenchPath {
    /// All, in the order of the report.
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
            Self::Restore => "restore",
            Self::Cold => "cold",
        }
    }
}
