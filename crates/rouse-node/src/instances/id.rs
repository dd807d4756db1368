//! Names of instances.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use uuid::Uuid;

/// Name of an instance, as `i-` and 16 hexadecimal digits. Random, so that no name of an instance that is gone means
/// another one, after a restart of the node either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(u64);

/// A text that names no instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instance is named by i- and 16 hexadecimal digits")]
pub struct NoInstanceId;

impl InstanceId {
    /// One that nobody has.
    pub(super) fn new() -> Self {
        Self(Uuid::new_v4().as_u64_pair().1)
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i-{:016x}", self.0)
    }
}

impl FromStr for InstanceId {
    type Err = NoInstanceId;

    fn from_str(text: &str) -> Result<Self, NoInstanceId> {
        let digits = text.strip_prefix("i-").ok_or(NoInstanceId)?;
        let is_plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() != 16 || !digits.bytes().all(is_plain) {
            return Err(NoInstanceId);
        }
        let number = u64::from_str_radix(digits, 16);
        number.map(Self).map_err(|_| NoInstanceId)
    }
}

impl Serialize for InstanceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_is_read_as_it_is_written(number: u64) {
            let id = InstanceId(number);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }

        #[test]
        fn nothing_else_is_a_name(text in "(i-)?[0-9a-fA-F+-]{0,18}") {
            if let Ok(id) = text.parse::<InstanceId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
