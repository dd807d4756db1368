//! When a function's snapshots are taken: what can be asked for, and what is valid.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::refusal::Refusal;

/// Most events that are run before a snapshot.
pub const MAX_EVENTS: usize = 64;

/// Bytes that they may have together, as JSON.
pub const MAX_EVENT_BYTES: usize = 256 << 10;

/// Most times that they are run.
const MAX_ROUNDS: u32 = 1000;

/// When snapshots are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointPolicy {
    /// When init is over.
    #[default]
    Init,
    /// After warm-up events were run.
    Warm,
    /// First when init is over. Later points are tried once the function has been called, and kept if they are better.
    Auto,
}

impl PointPolicy {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            PointPolicy::Init => "init",
            PointPolicy::Warm => "warm",
            PointPolicy::Auto => "auto",
        }
    }
}

impl std::str::FromStr for PointPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [PointPolicy::Init, PointPolicy::Warm, PointPolicy::Auto]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| "must be init, warm or auto".to_owned())
    }
}

/// When one function's snapshots are taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPointSettings {
    /// When.
    pub policy: PointPolicy,
    /// What is run before; `None` for the file that the package brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<Value>>,
    /// For `warm`: times that all events are run; `None` for once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
    /// For `auto`: invocations between two trials; `None` for the node's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

impl SnapshotPointSettings {
    /// Checks what serde cannot.
    pub fn validate(&self) -> Result<(), Refusal> {
        let refuse = |reason: String| {
            Err(Refusal::InvalidParameterValue(format!(
                "The snapshot point is not valid: {reason}."
            )))
        };
        if let Some(events) = &self.events
            && let Err(reason) = check_events(events)
        {
            return refuse(reason);
        }
        if self
            .rounds
            .is_some_and(|rounds| rounds == 0 || rounds > MAX_ROUNDS)
        {
            return refuse(format!("rounds must be between 1 and {MAX_ROUNDS}"));
        }
        if self.after == Some(0) {
            return refuse("after must be at least 1".into());
        }
        if self.rounds.is_some() && self.policy != PointPolicy::Warm {
            return refuse("rounds belong to the policy warm".into());
        }
        if self.after.is_some() && self.policy != PointPolicy::Auto {
            return refuse("after belongs to the policy auto".into());
        }
        Ok(())
    }
}

/// Are these events that can be run before a snapshot?
pub fn check_events(events: &[Value]) -> Result<(), String> {
    if events.is_empty() || events.len() > MAX_EVENTS {
        return Err(format!(
            "there must be 1 to {MAX_EVENTS} warm-up events, not {}",
            events.len()
        ));
    }
    let bytes: usize = events.iter().map(|event| event.to_string().len()).sum();
    if bytes > MAX_EVENT_BYTES {
        return Err(format!(
            "the warm-up events have {bytes} bytes, and {MAX_EVENT_BYTES} are allowed"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(), String> {
        let settings: SnapshotPointSettings =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        settings.validate().map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn what_belongs_together_is_taken_and_the_rest_named() {
        for good in [
            r#"{"policy": "init"}"#,
            r#"{"policy": "warm", "events": [1, {"a": null}], "rounds": 3}"#,
            r#"{"policy": "auto", "after": 7}"#,
        ] {
            assert_eq!(parsed(good), Ok(()), "{good}");
        }
        for (bad, word) in [
            (r#"{"policy": "late"}"#, "late"),
            (r#"{"policy": "init", "when": 1}"#, "when"),
            (r#"{"policy": "warm", "events": []}"#, "1 to 64"),
            (r#"{"policy": "warm", "rounds": 0}"#, "rounds"),
            (r#"{"policy": "auto", "rounds": 2}"#, "rounds"),
            (r#"{"policy": "auto", "after": 0}"#, "after"),
            (r#"{"policy": "warm", "after": 3}"#, "after"),
        ] {
            let problem = parsed(bad).unwrap_err();
            assert!(problem.contains(word), "{bad}: {problem}");
        }
        let large = serde_json::json!({"policy": "warm", "events": ["x".repeat(MAX_EVENT_BYTES)]});
        assert!(parsed(&large.to_string()).unwrap_err().contains("bytes"));
    }
}
