//! What may be decided about the serving of one function.
//!
//! [`ServingPolicy`] is what was said, each part `None` where the node decides; [`Serving`] is what holds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::NodeConfig;
use crate::engine::admission::FlowLimits;
use crate::refusal::Refusal;

/// Most instances that can be asked for.
const MAX_INSTANCES: u32 = 10_000;
/// Longest fixed time that an idle instance can be kept, seconds: a week.
const MAX_KEEP_ALIVE_S: u64 = 7 * 24 * 3600;

/// Who may see what a request has left in an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// `request` for functions with a snapshot; `instance` for those that can only start from nothing.
    #[default]
    Auto,
    /// Nobody: each request gets an instance that no request has used.
    Request,
    /// Later requests of the same function, as in Lambda: an instance that has answered is used again.
    Instance,
}

impl Isolation {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Isolation::Auto => "auto",
            Isolation::Request => "request",
            Isolation::Instance => "instance",
        }
    }

    /// Is an instance used again after its answer?
    pub fn reuses(self, has_snapshot: bool) -> bool {
        match self {
            Isolation::Auto => !has_snapshot,
            Isolation::Request => false,
            Isolation::Instance => true,
        }
    }
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Isolation::Auto, Isolation::Request, Isolation::Instance]
            .into_iter()
            .find(|isolation| isolation.name() == text)
            .ok_or_else(|| "must be auto, request or instance".to_owned())
    }
}

/// The kind of sandbox that a function's instances have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxChoice {
    /// Processes behind namespaces and a filter of system calls, which share the host's kernel.
    #[default]
    Process,
    /// A virtual machine with a kernel of its own.
    Microvm,
}

impl FromStr for SandboxChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "process" => Ok(SandboxChoice::Process),
            "microvm" => Ok(SandboxChoice::Microvm),
            _ => Err("must be process or microvm".to_owned()),
        }
    }
}

/// What comes of a request that runs when its client goes away. One that waits leaves the queue in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDisconnect {
    /// Its instance is ended.
    #[default]
    End,
    /// It runs to its end, as in Lambda, and nobody hears of it.
    Finish,
}

impl FromStr for OnDisconnect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "end" => Ok(OnDisconnect::End),
            "finish" => Ok(OnDisconnect::Finish),
            _ => Err("must be end or finish".to_owned()),
        }
    }
}

/// How long an instance that nobody uses is kept. Written as a number of seconds, or as `histogram`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "KeepAliveForm", into = "KeepAliveForm")]
pub enum KeepAlive {
    /// Seconds.
    Fixed(u64),
    /// As long as the function's own pauses suggest; see [`super::keep_alive`].
    Histogram,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum KeepAliveForm {
    Seconds(u64),
    Name(String),
}

impl TryFrom<KeepAliveForm> for KeepAlive {
    type Error = String;

    fn try_from(form: KeepAliveForm) -> Result<Self, String> {
        match form {
            KeepAliveForm::Seconds(seconds) => Ok(KeepAlive::Fixed(seconds)),
            KeepAliveForm::Name(name) => name.parse(),
        }
    }
}

impl From<KeepAlive> for KeepAliveForm {
    fn from(keep_alive: KeepAlive) -> Self {
        match keep_alive {
            KeepAlive::Fixed(seconds) => KeepAliveForm::Seconds(seconds),
            KeepAlive::Histogram => KeepAliveForm::Name("histogram".into()),
        }
    }
}

impl FromStr for KeepAlive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "histogram" => Ok(KeepAlive::Histogram),
            seconds => (seconds.parse().map(KeepAlive::Fixed))
                .map_err(|_| "must be a number of seconds, or histogram".to_owned()),
        }
    }
}

impl fmt::Display for KeepAlive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeepAlive::Fixed(seconds) => write!(f, "{seconds}"),
            KeepAlive::Histogram => f.write_str("histogram"),
        }
    }
}

/// What was decided about one function; `None` leaves it to the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServingPolicy {
    /// The kind of its sandboxes. `None` is `process`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxChoice>,
    /// Are instances used again?
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Instances that exist at any time, those that answer included. `None` is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_instances: Option<u32>,
    /// Instances that exist at most, those of all versions together. `None` is as many as the node allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_instances: Option<u32>,
    /// Requests of all versions that may run at the same time, and that others leave room for (Lambda's reserved
    /// concurrency); 0 lets none run. `None` is no reservation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_concurrency: Option<u32>,
    /// Requests of all versions that may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_max: Option<u32>,
    /// Whose function it is: tenants share the node alike. `None` is `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Instances that are ready before their requests come (Lambda's provisioned concurrency). `None` is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provisioned: Option<u32>,
    /// What comes of a request whose client goes away. `None` is `end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_disconnect: Option<OnDisconnect>,
    /// How long idle instances are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    /// Instances that wait, parked, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parked_min: Option<u32>,
    /// The same at most; the rate of requests decides in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parked_max: Option<u32>,
}

/// How a function is served: its policy, completed by the node's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Serving {
    /// The kind of its sandboxes.
    pub sandbox: SandboxChoice,
    /// Are instances used again?
    pub isolation: Isolation,
    /// Instances that exist at any time.
    pub min_instances: u32,
    /// Instances that exist at most, if there is a limit.
    pub max_instances: Option<u32>,
    /// Requests that may run at the same time, and that others leave room for.
    pub reserved_concurrency: Option<u32>,
    /// Requests that may wait.
    pub queue_max: u32,
    /// Whose function it is.
    pub tenant: String,
    /// Instances that are ready before their requests come.
    pub provisioned: u32,
    /// What comes of a request whose client goes away.
    pub on_disconnect: OnDisconnect,
    /// How long idle instances are kept.
    pub keep_alive: KeepAlive,
    /// Parked instances at least.
    pub parked_min: u32,
    /// Parked instances at most.
    pub parked_max: u32,
}

impl ServingPolicy {
    /// What a version takes over that is published.
    pub fn of_version(&self) -> Self {
        Self {
            // Belong to the function with all its versions.
            max_instances: None,
            reserved_concurrency: None,
            queue_max: None,
            tenant: None,
            // Belongs to the version that it was given.
            provisioned: None,
            ..self.clone()
        }
    }

    /// Is nothing decided?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// With a JSON merge patch applied (RFC 7396): members that are named are set, `null` leaves one to the node again.
    pub fn patched(&self, patch: &Value) -> Result<Self, Refusal> {
        let refuse = |reason: String| {
            Refusal::InvalidParameterValue(format!("The serving policy is not valid: {reason}."))
        };
        let Value::Object(patch) = patch else {
            return Err(refuse("it must be a JSON object".into()));
        };
        let mut members = match serde_json::to_value(self) {
            Ok(Value::Object(members)) => members,
            Ok(_) | Err(_) => serde_json::Map::new(),
        };
        for (name, value) in patch {
            members.insert(name.clone(), value.clone());
        }
        // `null` is how serde reads `None`.
        let policy: Self = serde_json::from_value(Value::Object(members))
            .map_err(|error| refuse(error.to_string()))?;
        policy.validate().map_err(refuse)?;
        Ok(policy)
    }

    /// Checks what serde cannot.
    pub fn validate(&self) -> Result<(), String> {
        let counts = [
            ("min_instances", self.min_instances),
            ("max_instances", self.max_instances),
            ("reserved_concurrency", self.reserved_concurrency),
            ("queue_max", self.queue_max),
            ("provisioned", self.provisioned),
            ("parked_min", self.parked_min),
            ("parked_max", self.parked_max),
        ];
        for (name, count) in counts {
            if count.is_some_and(|count| count > MAX_INSTANCES) {
                return Err(format!("{name} must be at most {MAX_INSTANCES}"));
            }
        }
        if let Some(KeepAlive::Fixed(seconds)) = self.keep_alive
            && seconds > MAX_KEEP_ALIVE_S
        {
            return Err(format!("keep_alive must be at most {MAX_KEEP_ALIVE_S}"));
        }
        if let Some(tenant) = self.tenant.as_deref().filter(|name| !is_tenant(name)) {
            return Err(format!(
                "tenant must be 1 to 64 letters, digits, '-' and '_', not {tenant:?}"
            ));
        }
        if self.max_instances == Some(0) {
            return Err(
                "max_instances must be at least 1; reserved_concurrency 0 lets nothing run".into(),
            );
        }
        for most in [self.max_instances, self.reserved_concurrency] {
            if let (Some(least), Some(most)) = (self.min_instances.max(self.provisioned), most)
                && least > most
            {
                return Err(format!(
                    "{least} instances are to be ready, and only {most} may run"
                ));
            }
        }
        if let (Some(least), Some(most)) = (self.parked_min, self.parked_max)
            && least > most
        {
            return Err("parked_min must not be greater than parked_max".into());
        }
        Ok(())
    }

    /// The kind of sandbox that holds.
    pub fn sandbox(&self) -> SandboxChoice {
        self.sandbox.unwrap_or_default()
    }

    /// What holds on a node.
    pub fn on(&self, config: &NodeConfig) -> Serving {
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let fixed = match config.keep_alive_histogram {
            true => KeepAlive::Histogram,
            false => KeepAlive::Fixed(config.keep_alive_s),
        };
        let parked_max = self.parked_max.unwrap_or_else(|| {
            let least = self.parked_min.unwrap_or(0);
            count(config.parked_max).max(least)
        });
        Serving {
            sandbox: self.sandbox(),
            isolation: self.isolation.unwrap_or(config.isolation),
            min_instances: self.min_instances.unwrap_or(0),
            max_instances: self.max_instances,
            reserved_concurrency: self.reserved_concurrency,
            queue_max: self.queue_max.unwrap_or(config.queue_max),
            tenant: self.tenant.clone().unwrap_or_else(|| "default".into()),
            provisioned: self.provisioned.unwrap_or(0),
            on_disconnect: self.on_disconnect.unwrap_or_default(),
            keep_alive: self.keep_alive.unwrap_or(fixed),
            parked_min: (self.parked_min)
                .unwrap_or(count(config.parked_min))
                .min(parked_max),
            parked_max,
        }
    }
}

/// The members that belong to a function with all its versions.
pub(super) const OF_ALL_VERSIONS: [&str; 4] = [
    "max_instances",
    "reserved_concurrency",
    "queue_max",
    "tenant",
];

fn is_tenant(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=64).contains(&name.len()) && name.bytes().all(is_plain)
}

impl Serving {
    /// What admission is to know.
    pub fn flow_limits(&self) -> FlowLimits {
        FlowLimits {
            tenant: self.tenant.clone(),
            reserved: self.reserved_concurrency,
            most: self.max_instances,
            queued: self.queue_max,
        }
    }

    /// Instances that have to wait for requests now, whatever the rate is, when `busy` are answering.
    pub fn ready_wanted(&self, busy: usize) -> usize {
        let busy = u32::try_from(busy).unwrap_or(u32::MAX);
        let wanted = self.min_instances.max(self.provisioned);
        wanted.saturating_sub(busy) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_patch_changes_what_it_names() {
        let policy = ServingPolicy::default();
        let policy = policy
            .patched(&json!({ "isolation": "instance", "keep_alive": 5, "provisioned": 3 }))
            .unwrap();
        let policy = policy
            .patched(&json!({ "keep_alive": "histogram", "provisioned": null }))
            .unwrap();
        assert_eq!(
            policy,
            ServingPolicy {
                isolation: Some(Isolation::Instance),
                keep_alive: Some(KeepAlive::Histogram),
                ..ServingPolicy::default()
            }
        );
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(text, r#"{"isolation":"instance","keep_alive":"histogram"}"#);
        assert_eq!(
            serde_json::from_str::<ServingPolicy>(&text).unwrap(),
            policy
        );
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (bad, word) in [
            (json!([]), "object"),
            (json!({ "isolation": "none" }), "none"),
            (json!({ "keep_alive": "long" }), "histogram"),
            (json!({ "keep_alive": 1e9 as u64 }), "keep_alive"),
            (json!({ "keep_alive": -1 }), "KeepAliveForm"),
            (json!({ "min_instances": 10_001 }), "min_instances"),
            (json!({ "provisioned": -1 }), "-1"),
            (json!({ "parked_min": 3, "parked_max": 2 }), "parked_min"),
            (json!({ "parked": 3 }), "parked"),
            (json!({ "max_instances": 0 }), "at least 1"),
            (json!({ "max_instances": 2, "min_instances": 3 }), "only 2"),
            (
                json!({ "reserved_concurrency": 1, "provisioned": 2 }),
                "only 1",
            ),
            (json!({ "tenant": "a b" }), "a b"),
        ] {
            let refusal = ServingPolicy::default().patched(&bad).unwrap_err();
            assert!(refusal.to_string().contains(word), "{bad}: {refusal}");
        }
    }

    #[test]
    fn the_node_decides_what_nobody_decided() {
        let config = NodeConfig {
            parked_min: 2,
            parked_max: 4,
            ..NodeConfig::default()
        };
        let serving = ServingPolicy::default().on(&config);
        assert_eq!(serving.keep_alive, KeepAlive::Fixed(config.keep_alive_s));
        assert_eq!((serving.parked_min, serving.parked_max), (2, 4));
        let fewer = ServingPolicy {
            parked_max: Some(1),
            ..ServingPolicy::default()
        };
        let fewer = fewer.on(&config);
        assert_eq!((fewer.parked_min, fewer.parked_max), (1, 1));
        let more = ServingPolicy {
            parked_min: Some(9),
            min_instances: Some(3),
            provisioned: Some(2),
            ..ServingPolicy::default()
        };
        let more = more.on(&config);
        assert_eq!((more.parked_min, more.parked_max), (9, 9));
        assert_eq!([0, 1, 5].map(|busy| more.ready_wanted(busy)), [3, 2, 0]);
    }
}
