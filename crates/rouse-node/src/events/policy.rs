//! What may be decided about a function's asynchronous invocations (Lambda's EventInvokeConfig and DeadLetterConfig).

use serde::{Deserialize, Serialize};

use crate::config::NodeConfig;
use crate::function::arn::{FunctionRef, function_arn};
use crate::refusal::Refusal;

/// Most retries, as in Lambda.
const MAX_RETRIES: u32 = 2;
/// Least and greatest limit of an event's age, seconds, as in Lambda.
const AGES_S: (u64, u64) = (60, 21_600);

/// Where somebody is told how an event has ended. Stored as its ARN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Destination {
    /// A function of this node.
    Function(FunctionRef),
    /// A queue: a directory of the node, see [`super::queues`].
    Queue {
        /// Name.
        name: String,
        /// Region and account of its ARN.
        region: String,
        /// Account of its ARN.
        account: String,
    },
}

impl Destination {
    /// Reads the ARN of a function or of a queue.
    pub fn parse(arn: &str) -> Result<Self, String> {
        if arn.starts_with("arn:aws:lambda:") {
            let function = FunctionRef::parse(arn).map_err(|refusal| refusal.to_string())?;
            return match (&function.region, &function.account) {
                (Some(_), Some(_)) => Ok(Destination::Function(function)),
                _ => Err(format!("{arn} is no whole ARN of a function")),
            };
        }
        let parts: Vec<&str> = arn.split(':').collect();
        let ["arn", "aws", "sqs", region, account, name] = parts[..] else {
            return Err(format!(
                "{arn} is neither the ARN of a function nor that of a queue (arn:aws:sqs:REGION:ACCOUNT:NAME)"
            ));
        };
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if !(1..=80).contains(&name.len()) || !name.bytes().all(is_plain) {
            return Err(format!("{name:?} cannot be the name of a queue"));
        }
        Ok(Destination::Queue {
            name: name.to_owned(),
            region: region.to_owned(),
            account: account.to_owned(),
        })
    }

    /// Its ARN.
    pub fn arn(&self) -> String {
        match self {
            Destination::Function(function) => function_arn(
                function.region.as_deref().unwrap_or_default(),
                function.account.as_deref().unwrap_or_default(),
                &function.name,
                function.qualifier.as_deref(),
            ),
            Destination::Queue {
                name,
                region,
                account,
            } => format!("arn:aws:sqs:{region}:{account}:{name}"),
        }
    }

    /// Is it of this node?
    pub(super) fn is_here(&self, config: &NodeConfig) -> bool {
        let (region, account) = match self {
            Destination::Function(function) => {
                (function.region.as_ref(), function.account.as_ref())
            }
            Destination::Queue {
                region, account, ..
            } => (Some(region), Some(account)),
        };
        region == Some(&config.region) && account == Some(&config.account)
    }
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(arn: String) -> Result<Self, String> {
        Self::parse(&arn)
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.arn()
    }
}

/// What was decided about one version of a function; `None` leaves it to the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventPolicy {
    /// Retries after function errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Age after which an event is given up, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_s: Option<u64>,
    /// Who is told of an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_success: Option<Destination>,
    /// Who is told that an event was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<Destination>,
    /// Where the events themselves go that were given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letters: Option<Destination>,
    /// When that was decided, milliseconds since the epoch; `None` while there is no EventInvokeConfig.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified_ms: Option<u64>,
}

impl EventPolicy {
    /// Is nothing decided?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the ranges, in Lambda's words.
    pub fn validate(&self) -> Result<(), Refusal> {
        let violation = |value: u64, member: &str, constraint: String| {
            Err(Refusal::Validation(format!(
                "1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: {constraint}"
            )))
        };
        if let Some(retries) = self.retries.filter(|retries| *retries > MAX_RETRIES) {
            let constraint = format!("Member must have value less than or equal to {MAX_RETRIES}");
            return violation(u64::from(retries), "maximumRetryAttempts", constraint);
        }
        let (least, most) = AGES_S;
        match self.max_age_s {
            Some(age) if age < least => violation(
                age,
                "maximumEventAgeInSeconds",
                format!("Member must have value greater than or equal to {least}"),
            ),
            Some(age) if age > most => violation(
                age,
                "maximumEventAgeInSeconds",
                format!("Member must have value less than or equal to {most}"),
            ),
            _ => Ok(()),
        }
    }

    /// Seconds before the next attempt when so many have failed; `None` when that was the last.
    pub fn pause_s(&self, failures: u32, config: &NodeConfig) -> Option<u64> {
        let pauses = &config.async_retry_s;
        let retries = self.retries.unwrap_or(count(pauses.len()));
        if failures > retries {
            return None;
        }
        // More retries than the node has pauses: the last one counts for the rest.
        let index = (failures.max(1) as usize - 1).min(pauses.len().saturating_sub(1));
        Some(pauses.get(index).copied().unwrap_or(0))
    }

    /// Age after which an event is given up, seconds.
    pub fn max_age_s(&self, config: &NodeConfig) -> u64 {
        self.max_age_s.unwrap_or(config.async_max_age_s)
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_arns_of_functions_and_queues() {
        for arn in [
            "arn:aws:lambda:us-east-1:000000000000:function:f",
            "arn:aws:lambda:us-east-1:000000000000:function:f:3",
            "arn:aws:sqs:us-east-1:000000000000:dead-letters",
        ] {
            let destination = Destination::parse(arn).unwrap();
            assert_eq!(destination.arn(), arn);
            assert!(destination.is_here(&NodeConfig::default()));
            let text = serde_json::to_string(&destination).unwrap();
            assert_eq!(
                serde_json::from_str::<Destination>(&text).unwrap(),
                destination
            );
        }
        let elsewhere = Destination::parse("arn:aws:sqs:eu-west-1:000000000000:q").unwrap();
        assert!(!elsewhere.is_here(&NodeConfig::default()));
        for bad in [
            "",
            "f",
            "arn:aws:lambda:function:f",
            "arn:aws:sns:us-east-1:000000000000:topic",
            "arn:aws:sqs:us-east-1:000000000000:../up",
            "arn:aws:sqs:us-east-1:000000000000:",
            "arn:aws:sqs:us-east-1:000000000000:a:b",
        ] {
            assert!(Destination::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pauses_follow_the_node_and_their_number_the_function() {
        let config = NodeConfig {
            async_retry_s: vec![5, 7],
            ..NodeConfig::default()
        };
        let pauses = |retries| {
            let policy = EventPolicy {
                retries,
                ..EventPolicy::default()
            };
            (1..5)
                .map_while(|n| policy.pause_s(n, &config))
                .collect::<Vec<_>>()
        };
        assert_eq!(pauses(None), [5, 7]);
        assert!(pauses(Some(0)).is_empty());
        assert_eq!(pauses(Some(1)), [5]);
        let none = NodeConfig {
            async_retry_s: vec![],
            ..NodeConfig::default()
        };
        let policy = EventPolicy {
            retries: Some(1),
            ..EventPolicy::default()
        };
        assert_eq!(
            (policy.pause_s(1, &none), policy.pause_s(2, &none)),
            (Some(0), None)
        );
    }
}
